"""One of several processes that train a supernet together, started by torchrun with a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from nni_spaceevo.parallel import joined
from nni_spaceevo.supernet.run import SupernetRun
from supernet.tiny import CONFIG, stripes, tiny_hyperspace, uniform

if __name__ == "__main__":
    tiny, folder = tiny_hyperspace(), Path(sys.argv[1])
    with joined(torch.device("cpu")) as ranks:
        SupernetRun(tiny, uniform(tiny), stripes(), CONFIG, folder, ranks=ranks).run()
