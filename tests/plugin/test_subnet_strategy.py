"""The strategy for subnets in one process, on NNI's sequential engine."""

from __future__ import annotations

import atexit
import json
from pathlib import Path
from typing import Any

import nni
import pytest
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.experiment import NasExperiment
from nni.nas.space import ExecutableModelSpace, RawFormatModelSpace, SimplifiedModelSpace
from supernet.tiny import tiny_hyperspace, uniform

from nni_spaceevo import SEQnetSearch as PublicSEQnetSearch
from nni_spaceevo.errors import ConfigError, ConstraintError
from nni_spaceevo.hyperspace import SubnetCode
from nni_spaceevo.plugin.model_space import HyperspaceModelSpace
from nni_spaceevo.plugin.seam import ExperimentError
from nni_spaceevo.plugin.subnet_space import SubnetModelSpace
from nni_spaceevo.plugin.subnet_strategy import SEQnetSearch
from nni_spaceevo.search.priced import PricedSubnets
from nni_spaceevo.search.subnet_evolution import EvolutionNumbers
from nni_spaceevo.search.subnets import (
    SubnetSearch,
    SubnetSearchConfig,
    SurrogateNumbers,
    best_within,
    constraint_at,
    pareto_front,
)
from nni_spaceevo.supernet.model import Subnet
from nni_spaceevo.testing import MACsLatency

from .stand_in import accuracy

TINY = tiny_hyperspace()
CODE = uniform(TINY)
PREDICTOR = MACsLatency()
CONFIG = SubnetSearchConfig(
    evolution=EvolutionNumbers(population=8, mutations=2, crossovers=2, generations=2),
    surrogate=SurrogateNumbers(first=4, rounds=2, candidates=2),
)
SUBNETS = PricedSubnets(TINY, CODE, PREDICTOR)
CONSTRAINTS = tuple(constraint_at([SUBNETS], q, 0) for q in (0.4, 0.9))
SPACE = SubnetModelSpace(TINY, CODE)


def judge(subnet: Subnet) -> None:
    """Report what the subnet's code alone decides."""
    nni.report_final_result({"default": accuracy(str(subnet.code)), "loss": 1.0})


def strategy(config: SubnetSearchConfig = CONFIG) -> SEQnetSearch:
    return SEQnetSearch(PREDICTOR, CONSTRAINTS, config=config)


def run(
    search: SEQnetSearch,
    evaluate: Any = judge,
    most: int | None = None,
    kind: type[ExecutableModelSpace] = RawFormatModelSpace,
) -> list[str]:
    """The subnets that became models, in order."""
    engine = SequentialExecutionEngine(max_model_count=most)
    search(kind.from_model(SPACE, FunctionalEvaluator(evaluate)), engine)
    models = [m for m in engine.list_models() if m.sample is not None]
    return [str(SPACE.choices.subnet(m.sample)) for m in models]


def undisturbed(config: SubnetSearchConfig = CONFIG) -> SubnetSearch:
    search = SubnetSearch(SUBNETS, CONSTRAINTS, config, 0)
    while codes := search.ask():
        for code in codes:
            search.tell(code, accuracy(str(code)))
    return search


def test_it_is_a_public_name() -> None:
    assert PublicSEQnetSearch is SEQnetSearch


@pytest.mark.parametrize("kind", [RawFormatModelSpace, SimplifiedModelSpace])
@pytest.mark.parametrize("surrogate", [CONFIG.surrogate, None], ids=["surrogate", "published"])
def test_every_subnet_that_the_search_asks_for_becomes_a_model(
    kind: type[ExecutableModelSpace], surrogate: SurrogateNumbers | None
) -> None:
    config = SubnetSearchConfig(evolution=CONFIG.evolution, surrogate=surrogate)
    search, wanted = strategy(config), undisturbed(config).evaluated
    assert run(search, kind=kind) == [str(s.code) for s in wanted]
    assert search.front == pareto_front(wanted)
    assert search.best == tuple(best_within(wanted, T) for T in CONSTRAINTS)
    assert f"{len(wanted)} subnets" in repr(search)


def test_a_nas_experiment_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    search = strategy()
    experiment = NasExperiment(SPACE, FunctionalEvaluator(judge), search)
    experiment.run()
    experiment.stop()
    atexit.unregister(experiment.stop)
    assert search.front == pareto_front(undisturbed().evaluated)
    (top,) = experiment.export_top_models(1, formatter="dict")
    most = max(undisturbed().evaluated, key=lambda s: s.accuracy)
    assert top == SPACE.choices.sample(most.code)


def test_a_budget_ends_the_search_with_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    search = strategy()
    models = run(search, most=3)
    assert [str(s.code) for s in search.search.evaluated] == models
    assert len(models) == 3
    assert search.front
    assert "ends early: the experiment's budget is used up" in caplog.text


def test_a_stopped_search_continues_with_what_is_missing() -> None:
    stopped = strategy()

    def first_five(subnet: Subnet) -> None:
        if len(stopped.state_dict()["accuracies"]) == 5:
            raise KeyboardInterrupt
        judge(subnet)

    with pytest.raises(KeyboardInterrupt):
        run(stopped, first_five)
    state = json.loads(json.dumps(stopped.state_dict()))
    continued = strategy()
    continued.load_state_dict(state)
    wanted = [str(s.code) for s in undisturbed().evaluated]
    assert run(continued) == wanted[5:]
    assert continued.search.evaluated == undisturbed().evaluated


def test_a_subnet_without_a_result_is_tried_three_times() -> None:
    tried: list[SubnetCode] = []

    def silent_once(subnet: Subnet) -> None:
        tried.append(subnet.code)
        if len(tried) > 1:
            judge(subnet)

    search = strategy()
    run(search, silent_once)
    assert search.front == pareto_front(undisturbed().evaluated)
    assert tried.count(tried[0]) == 2
    with pytest.raises(ExperimentError, match="3 trials have ended without a number as result"):
        run(strategy(), lambda subnet: None)


def test_what_cannot_be_searched_is_told_at_once() -> None:
    engine = SequentialExecutionEngine()
    other = SimplifiedModelSpace.from_model(HyperspaceModelSpace(TINY), FunctionalEvaluator(judge))
    with pytest.raises(ConfigError, match="expected a SubnetModelSpace as model space, given"):
        strategy().initialize(other, engine)
    subnets = RawFormatModelSpace.from_model(SPACE, FunctionalEvaluator(judge))
    with pytest.raises(ConstraintError, match="below the fastest subnet"):
        SEQnetSearch(PREDICTOR, [1e-6]).initialize(subnets, engine)
