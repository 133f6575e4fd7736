"""What a search has found, as pictures and pages."""
