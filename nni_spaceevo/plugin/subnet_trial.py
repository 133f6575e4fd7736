"""A trial of a subnet search: one subnet of a trained supernet, INT8, on held-out images.

NNI runs `python3 -m nni_spaceevo.plugin.subnet_trial --job spaceevo.yaml` in `trialCodeDirectory`.
Which subnet, and what it costs, is what the tuner `SpaceEvoSubnets` says in the trial's parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from ..files import Record, convert
from ..hyperspace import Hyperspace, SpaceCode, SubnetCode, chain_kernels, mflops, mparams
from ..jobs.job import Job
from . import seam
from .trial_base import trial_main

# NNI's reader takes all that follows a `#` for a comment.
_AUTHORS, _NNIS = "#", ","


def task_of(subnet: SubnetCode) -> str:
    """A subnet's code as it goes by way of NNI, with commas."""
    return str(subnet).replace(_AUTHORS, _NNIS)


def code_of(task: str) -> str:
    """The subnet code of what `task_of` has made."""
    return task.replace(_NNIS, _AUTHORS)


class SubnetParameters(Record, frozen=True):
    """What a trial is given; NNI's web page draws the numbers as axes, in this order.

    Attributes
    ----------
    subnet : what `task_of` makes of its code
    space : space code
    seed : of the supernet
    resolution : of its images
    blocks : in all of its elastic stages
    mparams, mflops : millions of parameters and of multiply-accumulates
    predicted_ms : by the predictor of the tuner's job, to a nanosecond
    """

    # The page writes an axis' texts to its left, so the longest stand where nothing is.
    subnet: str
    space: str
    seed: int
    resolution: int
    blocks: int
    mparams: float
    mflops: float
    predicted_ms: float


def parameters_of(
    hyperspace: Hyperspace, space: SpaceCode, seed: int, subnet: SubnetCode, predicted_ms: float
) -> SubnetParameters:
    """What a trial of a subnet is given."""
    kernels = chain_kernels(hyperspace.all_blocks(space, subnet), subnet.resolution)
    return SubnetParameters(
        subnet=task_of(subnet),
        space=str(space),
        seed=seed,
        resolution=subnet.resolution,
        blocks=sum(map(len, subnet.stages)),
        mparams=mparams(kernels),
        mflops=mflops(kernels),
        predicted_ms=round(predicted_ms, 6),
    )


def run(job: Job) -> str:
    """Evaluate the subnet that NNI has for this trial and report it.

    Numbers and text only: NNI's web page goes blank, for good, once a user shows the column of a
    metric that is an object.

    Returns
    -------
    a line about it

    Raises
    ------
    SpaceEvoError
        Not started by NNI, parameters that are not a subnet's, or no such supernet here.
    """
    trial = seam.ThisTrial()
    try:
        given = convert(trial.parameters, SubnetParameters, "a trial's parameters")
    except ConfigError as error:
        raise ConfigError(f"{error}; the experiment's tuner must be SpaceEvoSubnets") from error
    space = job.hyperspace.space(given.space)
    code = job.hyperspace.subnet(space, code_of(given.subnet))

    from ..jobs.subnets import SubnetEvaluator

    evaluator = SubnetEvaluator(job, space, given.seed)
    found = evaluator(code)
    metrics: dict[str, Any] = {
        "default": found.accuracy,
        "loss": found.loss,
        "subnet": given.subnet,
        "predicted_ms": given.predicted_ms,
        "mflops": given.mflops,
        "mparams": given.mparams,
        "supernet": evaluator.made_for,
    }
    trial.report_final(metrics)
    return f"{code}: accuracy {found.accuracy:.4f}, {given.predicted_ms:.4g} ms"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, 1 after an error that the user can mend."""
    return trial_main("nni_spaceevo.plugin.subnet_trial", __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
