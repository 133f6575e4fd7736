"""What made a raw output: the machine, the versions and the day, with which every one begins."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from typing import Any

from nni_spaceevo.latency.machine import cpu_description


def provenance(*packages: str, **device: Any) -> dict[str, Any]:
    """The first keys of a raw output.

    Parameters
    ----------
    *packages : distributions that the figures depend on, as pip names them
    **device : what else the machine has, such as a GPU

    Returns
    -------
    `machine`, `versions` of Python and packages, and `date`
    """
    model, flags = cpu_description()
    return {
        "machine": {"cpu": model, "flags": flags, "cores": os.cpu_count(), **device},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "date": time.strftime("%Y-%m-%d"),
    }
