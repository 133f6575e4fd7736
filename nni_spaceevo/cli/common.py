"""What the verbs share: options that several of them take, and what those name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ..latency import LatencyPredictor
    from ..latency.nn_meter import NnMeterLatency
    from ..lut import QuantizedLUT

# Only the type checker knows its parameter.
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_job(verb: argparse.ArgumentParser) -> None:
    """Give a verb the option `--job`."""
    verb.add_argument("--job", type=Path, required=True, help="job file (YAML)")


def add_supernet(verb: argparse.ArgumentParser) -> None:
    """Give a verb the options `--space` and `--seed`, which tell a supernet of a job."""
    verb.add_argument(
        "--space",
        default="best",
        help="space code; default: best, the best one of the job's search",
    )
    verb.add_argument("--seed", type=int, help="of the supernet; default: the job's")


def add_hyperspace(verb: argparse.ArgumentParser) -> None:
    """Give a verb the option `--hyperspace`."""
    verb.add_argument("--hyperspace", required=True, help="YAML file or preset")


def add_hyperspace_of_lut(verb: argparse._ActionsContainer) -> None:
    """Give a verb that reads a LUT the option `--hyperspace`."""
    verb.add_argument("--hyperspace", help="YAML file or preset; default: the LUT's preset")


def read_lut(path: Path, hyperspace: str | None) -> QuantizedLUT:
    """The LUT of a file, made for the hyperspace or else for the preset that the file names."""
    from ..hyperspace import load_hyperspace
    from ..lut import QuantizedLUT

    return QuantizedLUT.load(path, None if hyperspace is None else load_hyperspace(hyperspace))


def add_trust(verb: argparse.ArgumentParser) -> None:
    """Give a verb the option `--trust-pickle`."""
    verb.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read an nn-Meter predictor's pickles. Reading a pickle runs whatever code is in it: "
        "say this only for files whose origin you trust",
    )


def is_nn_meter(name: str) -> bool:
    """Whether a predictor's name is a folder of nn-Meter's."""
    return Path(name, "meta.yaml").is_file()


def named_predictor(name: str, trust_pickle: bool) -> LatencyPredictor | NnMeterLatency:
    """The predictor of a name: a folder, ours or nn-Meter's, or one of the package's."""
    from ..latency import find_predictor, load_predictor

    if is_nn_meter(name):
        from ..latency.nn_meter import load_nn_meter

        return load_nn_meter(Path(name), trust_pickle=trust_pickle)
    return load_predictor(find_predictor(name))
