"""What NNI sees: the tuner, the trial's entry point, registration, and the job that they share."""
