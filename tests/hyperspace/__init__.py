"""Tests of the hyperspace room; a package, so that other rooms may have files of the same names."""
