"""A trial's side of NNI, without NNI; and a supernet, without training."""

from __future__ import annotations

from typing import Any, ClassVar

from nni_spaceevo.files import digest
from nni_spaceevo.hyperspace import SpaceCode, SubnetCode
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.subnets import SubnetResult


class Trial:
    """Stands in for `seam.ThisTrial`; what it is told is kept by the class."""

    parameters: ClassVar[dict[str, Any]] = {}
    curve: ClassVar[list[dict[str, Any]]] = []
    final: ClassVar[list[dict[str, Any]]] = []

    @classmethod
    def begin(cls, **parameters: Any) -> None:
        """Forget everything; the next trial has these parameters."""
        cls.parameters, cls.curve, cls.final = parameters, [], []

    def report_intermediate(self, metrics: dict[str, Any]) -> None:
        """A point of the curve."""
        self.curve.append(metrics)

    def report_final(self, metrics: dict[str, Any]) -> None:
        """The result."""
        self.final.append(metrics)


def accuracy(code: str) -> float:
    """Of a subnet, made up."""
    return int(digest(code)[:4], 16) / 0x10000


class Evaluator:
    """Stands in for a `SubnetEvaluator`; a supernet has no more than a name."""

    made_for = "supernet"

    def __init__(self, job: Job, space: SpaceCode, seed: int | None = None) -> None:
        pass

    def __call__(self, code: SubnetCode) -> SubnetResult:
        """On the searched images."""
        return SubnetResult(subnet=str(code), accuracy=accuracy(str(code)), loss=0.5)

    def unseen_accuracy(self, code: SubnetCode) -> float:
        """On the others."""
        return accuracy(str(code)) / 2
