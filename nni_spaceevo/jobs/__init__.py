"""A job: a file with all settings, its steps from images to a LUT, and the results it keeps."""
