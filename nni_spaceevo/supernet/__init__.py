"""The quantized-for-all supernet of one space: its subnets, its training, its evaluation.

Nothing is imported here, so that the settings (`.config`) can be read without torch.
"""
