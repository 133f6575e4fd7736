"""A trained subnet as a file that runtimes run, INT8 with the learned ranges; how fast it is."""
