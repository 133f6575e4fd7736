"""The quantized-for-all supernet of one space: its subnets, its training, its evaluation.

Nothing is imported here, so that the settings (`.config`) and the choices of a subnet (`.choices`)
can be read without torch.
"""
