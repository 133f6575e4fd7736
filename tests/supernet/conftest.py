"""Settings of the supernet tests."""

import torch

# Small networks are no faster on two threads, and far slower on a busy machine.
torch.set_num_threads(1)
