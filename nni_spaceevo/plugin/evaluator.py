"""What a trial of a NAS experiment does: it scores its space and reports what the web UI shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nni
from nni.nas.evaluator import Evaluator

from ..errors import ConfigError, LUTError
from ..files import convert
from ..hyperspace import Hyperspace, SpaceCode
from ..jobs.scoring import metrics_of
from ..lut import QuantizedLUT
from ..search import QTConfig, Scorer, check_constraints, make_scorer
from .model_space import HyperspaceSource, as_hyperspace, portable

LUTSource = QuantizedLUT | str | Path


@dataclass(frozen=True)
class Scoring:
    """How spaces are scored: a LUT and settings that fit it."""

    lut: QuantizedLUT
    config: QTConfig

    @cached_property
    def score(self) -> Scorer:
        """Scores a space."""
        return make_scorer(self.lut, self.config)


def checked_scoring(
    lut: LUTSource,
    constraints_ms: Iterable[float],
    hyperspace: HyperspaceSource | None = None,
    **settings: Any,
) -> Scoring:
    """Read a LUT and check everything that scores depend on.

    Parameters
    ----------
    lut : the LUT or its file
    constraints_ms : latency constraints T in milliseconds
    hyperspace : what the LUT was made for; needed for a file
    **settings : further fields of `QTConfig`

    Raises
    ------
    ConfigError
        A wrong setting, or a file without its hyperspace.
    LUTError
        The file is damaged, or the LUT has no latencies or belongs to another hyperspace.
    ConstraintError
        No subnet, or every subnet, is within a constraint.
    """
    if isinstance(constraints_ms, str) or not isinstance(constraints_ms, Iterable):
        raise ConfigError(f"constraints_ms: expected a list of ms, given {constraints_ms!r}")
    data = {"constraints_ms": [_plain_number(T) for T in constraints_ms], **settings}
    config = convert(data, QTConfig, "scoring")
    given = None if hyperspace is None else as_hyperspace(hyperspace)
    table = _read(lut, given)
    if not table.header.other_ms:
        raise LUTError(
            f"LUT of hyperspace {table.hyperspace.name!r}: no latencies yet; price it with a "
            "device's predictor"
        )
    check_constraints(table, config.constraints_ms)
    return Scoring(table, config)


def _read(lut: LUTSource, hyperspace: Hyperspace | None) -> QuantizedLUT:
    if not isinstance(lut, QuantizedLUT):
        if hyperspace is None:
            raise ConfigError(f"{lut}: give the hyperspace that the LUT was made for as well")
        return QuantizedLUT.load(lut, hyperspace)
    if hyperspace is not None and hyperspace.fingerprint != lut.hyperspace.fingerprint:
        raise LUTError(
            f"the LUT was made for hyperspace {lut.hyperspace.name!r} "
            f"({lut.hyperspace.fingerprint}), given {hyperspace.name!r} ({hyperspace.fingerprint})"
        )
    return lut


class SpaceScoreEvaluator(Evaluator):
    """Scores a space in its trial, for any strategy on a `HyperspaceModelSpace`.

    With `SpaceEvo` the intermediate results are the best score so far along the search. The final
    result is the Q-T score, with the columns of `metrics` beside it.

    Parameters
    ----------
    lut : the LUT's file; the LUT itself will do on NNI's sequential engine
    constraints_ms : latency constraints T in milliseconds
    hyperspace : what the LUT was made for; needed for a file
    **settings : further fields of `nni_spaceevo.search.QTConfig`

    Raises
    ------
    SpaceEvoError
        See `checked_scoring`.
    """

    def __init__(
        self,
        lut: LUTSource,
        constraints_ms: Iterable[float],
        *,
        hyperspace: HyperspaceSource | None = None,
        **settings: Any,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "lut": lut if isinstance(lut, QuantizedLUT) else str(Path(lut).resolve()),
            "constraints_ms": constraints_ms,
            "hyperspace": None if hyperspace is None else portable(hyperspace),
            **settings,
        }
        # A mistake is told here and not by the first trial.
        config = self.scoring.config
        self._arguments["constraints_ms"] = list(config.constraints_ms)

    @cached_property
    def scoring(self) -> Scoring:
        """LUT and settings; read when a trial needs them, not when NNI lists its trials."""
        return checked_scoring(**self._arguments)

    def evaluate(self, model: SpaceCode) -> dict[str, Any]:
        """Score a space and report it to NNI; returns the metrics."""
        trial = nni.get_current_parameter()
        for best_so_far in getattr(trial, "curve", ()):
            nni.report_intermediate_result(best_so_far)
        metrics = self.metrics(model)
        if hasattr(trial, "evaluations"):
            metrics["evaluations"] = trial.evaluations
        nni.report_final_result(metrics)
        return metrics

    def metrics(self, code: SpaceCode) -> dict[str, Any]:
        """What is reported of a space.

        Returns
        -------
        metrics : those of `nni_spaceevo.jobs.scoring.metrics_of`, block types and widths as text
        """
        lut, config = self.scoring.lut, self.scoring.config
        metrics = metrics_of(self.scoring.score(code), config.constraints_ms)
        stages = zip(lut.hyperspace.searchable, code.windows, strict=True)
        windows = [", ".join(map(str, stage.windows[window])) for stage, window in stages]
        metrics["blocks"] = " | ".join(lut.hyperspace.block_types[b].type for b in code.blocks)
        metrics["windows"] = " | ".join(windows)
        return metrics

    def extra_repr(self) -> str:
        """The text between the parentheses of `repr`."""
        lut = self._arguments["lut"]
        name = lut.hyperspace.name if isinstance(lut, QuantizedLUT) else lut
        return f"{name}, T = {self._arguments['constraints_ms']} ms"

    def _dump(self) -> dict[str, Any]:
        if isinstance(self._arguments["lut"], QuantizedLUT):
            raise ConfigError(
                "SpaceScoreEvaluator: trials are other processes, give the LUT as its file"
            )
        return dict(self._arguments)

    @classmethod
    def _load(cls, **arguments: Any) -> SpaceScoreEvaluator:
        evaluator = cls.__new__(cls)
        evaluator._arguments = arguments
        return evaluator


def _plain_number(value: Any) -> Any:
    # Of numpy's numbers, which a record does not take.
    return value.item() if hasattr(value, "item") else value
