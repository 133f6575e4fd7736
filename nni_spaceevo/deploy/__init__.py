"""A trained subnet as a file that a runtime runs: INT8 ONNX with the learned ranges."""
