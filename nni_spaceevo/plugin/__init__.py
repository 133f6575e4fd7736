"""What NNI sees: tuners, entry points of trials, strategies, registration."""
