"""A trial's side of NNI, without NNI."""

from __future__ import annotations

from typing import Any, ClassVar


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
