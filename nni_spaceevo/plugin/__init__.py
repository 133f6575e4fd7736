"""What NNI sees: tuners, entry points of trials, registration, and the job that they share."""
