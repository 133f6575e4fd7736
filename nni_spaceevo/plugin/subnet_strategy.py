"""The search for subnets as a strategy of NNI's NAS: a `NasExperiment` whose trials are subnets.

What an evaluator reports of a subnet is its accuracy, and all that the search asks for. So any of
NNI's evaluators may judge, in this process or in trials of its own.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from nni.nas.execution import ExecutionEngine
from nni.nas.space import ExecutableModelSpace
from nni.nas.strategy import Strategy

from ..errors import ConfigError
from ..files import Record, convert, plain
from ..hyperspace import SubnetChoices, SubnetCode
from ..lut import LatencyModel
from ..search.priced import PricedSubnets
from ..search.subnets import (
    EvaluatedSubnet,
    SubnetSearch,
    SubnetSearchConfig,
    best_within,
    pareto_front,
)
from .model_space import as_hyperspace
from .nas_seam import Trials, mend_resume
from .seam import ExperimentError
from .subnet_space import SubnetModelSpace

_logger = logging.getLogger(__name__)

# As of a task of our tuners.
_ATTEMPTS = 3


class SEQnetState(Record, frozen=True):
    """All that a stopped search needs to continue to the same result.

    Attributes
    ----------
    accuracies : of the evaluated subnets, by subnet code
    """

    accuracies: dict[str, float]


class SEQnetSearch(Strategy):
    """Finds the best subnets of a `SubnetModelSpace` within latencies (SpaceEvo, section 4.4).

    The search ends by itself, or with the experiment's budget.

    Parameters
    ----------
    predictor : of latencies, as `load_predictor` gives it
    constraints_ms : latency constraints T in milliseconds
    config : how to search
    seed : of everything random

    Raises
    ------
    ConfigError
        The experiment's model space is no `SubnetModelSpace`.
    ConstraintError
        A constraint below the fastest subnet. Both are told as the experiment starts.
    """

    def __init__(
        self,
        predictor: LatencyModel,
        constraints_ms: Iterable[float],
        *,
        config: SubnetSearchConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        mend_resume()
        self._predictor, self._constraints_ms = predictor, tuple(constraints_ms)
        self._config, self._seed = config or SubnetSearchConfig(), seed
        self._accuracies: dict[str, float] = {}
        self._attempts: Counter[str] = Counter()

    # ---- what has been found ------------------------------------------------------------------

    @property
    def best(self) -> tuple[EvaluatedSubnet | None, ...]:
        """The most accurate subnet within each constraint, ascending; None where there is none."""
        evaluated = self.search.evaluated
        return tuple(best_within(evaluated, T) for T in self.search.constraints_ms)

    @property
    def front(self) -> tuple[EvaluatedSubnet, ...]:
        """The subnets than which no other is as fast and more accurate, from the fastest on."""
        return pareto_front(self.search.evaluated)

    def extra_repr(self) -> str:
        """The text between the parentheses of `repr`."""
        T = " / ".join(f"{T:g}" for T in self._constraints_ms)
        return f"T = {T} ms, {len(self._accuracies)} subnets"

    # ---- NNI's interface ----------------------------------------------------------------------

    def _initialize(
        self, model_space: ExecutableModelSpace, engine: ExecutionEngine
    ) -> ExecutableModelSpace:
        self._choices = _choices_of(model_space)
        subnets = PricedSubnets(self._choices.hyperspace, self._choices.space, self._predictor)
        self.search = SubnetSearch(subnets, self._constraints_ms, self._config, self._seed)
        self._trials = Trials(engine, self._note)
        return model_space

    def _run(self) -> None:
        with self._trials:
            for model in self._trials.known():
                if model.metric is not None:
                    self._note(model, model.metric)
            has_budget = True
            while has_budget and (codes := self._unknown()):
                has_budget = self._evaluate(codes)
        if not has_budget and self._unknown():
            _logger.warning("the search for subnets ends early: the experiment's budget is used up")

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which `load_state_dict` continues to the same result."""
        return plain(SEQnetState(accuracies=dict(self._accuracies)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a search with the same weights and evaluator."""
        state = convert(state_dict, SEQnetState, "strategy state")
        self._accuracies = {**state.accuracies, **self._accuracies}

    # ---- subnets out, accuracies in -----------------------------------------------------------

    def _unknown(self) -> list[SubnetCode]:
        """What the search waits for, after it has been told all that is known; none at its end."""
        while known := [c for c in self.search.ask() if str(c) in self._accuracies]:
            for code in known:
                self.search.tell(code, self._accuracies[str(code)])
        return self.search.ask()

    def _evaluate(self, codes: list[SubnetCode]) -> bool:
        """Have subnets evaluated; whether the experiment's budget was enough.

        Raises
        ------
        ExperimentError
            A subnet has got no accuracy for the third time.
        """
        has_budget = all(self._submit(code) for code in codes)
        self._trials.wait(_nothing)
        for code in map(str, codes):
            if code not in self._accuracies and self._attempts[code] >= _ATTEMPTS:
                raise ExperimentError(
                    f"subnet {code}: {_ATTEMPTS} trials have ended without a number as result"
                )
        return has_budget

    def _submit(self, code: SubnetCode) -> bool:
        if not self._trials.wait_to_submit(_nothing):
            return False
        self._attempts[str(code)] += 1
        self._trials.submit(self.model_space.freeze(self._choices.sample(code)))
        return True

    def _note(self, model: ExecutableModelSpace, metric: float) -> None:
        self._accuracies.setdefault(str(self._choices.subnet(model.sample or {})), float(metric))


def _nothing() -> None:
    """What is to be done while trials run."""


def _choices_of(model_space: ExecutableModelSpace) -> SubnetChoices:
    """The choices of the `SubnetModelSpace` that NNI has wrapped, with or without its weights."""
    whole = getattr(model_space, "model_space", None)
    if isinstance(whole, SubnetModelSpace):
        return whole.choices
    traced = getattr(model_space, "model", None)
    if getattr(traced, "trace_symbol", None) is not SubnetModelSpace:
        raise ConfigError(
            f"SEQnetSearch: expected a SubnetModelSpace as model space, given {model_space}"
        )
    arguments = traced.trace_kwargs  # type: ignore[union-attr]
    hyperspace = as_hyperspace(arguments["hyperspace"])
    return SubnetChoices(hyperspace, hyperspace.space(arguments["space"]))
