"""A hyperspace as NNI's model space, and NNI's own strategies on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
from nni.mutable import SampleValidationError
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import ModelStatus, RawFormatModelSpace, SimplifiedModelSpace
from nni.nas.strategy import GridSearch, Random, RegularizedEvolution, Strategy

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.files import to_yaml
from nni_spaceevo.hyperspace import Hyperspace, SpaceCode, load_hyperspace
from nni_spaceevo.plugin.evaluator import SpaceScoreEvaluator
from nni_spaceevo.plugin.model_space import (
    FrozenSpace,
    HyperspaceModelSpace,
    as_hyperspace,
    portable,
)
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
CODE = HYPERSPACE.space("synthetic-012-201")


@pytest.fixture(scope="module")
def evaluator() -> SpaceScoreEvaluator:
    return SpaceScoreEvaluator(synthetic_lut(HYPERSPACE, CODE), [1.5], samples=2000)


def simplified(evaluator: Any = None) -> SimplifiedModelSpace:
    """The form in which a `NasExperiment` gives a model space to a strategy."""
    return SimplifiedModelSpace.from_model(HyperspaceModelSpace(HYPERSPACE), evaluator)


def test_it_offers_what_the_search_space_of_an_nni_experiment_says() -> None:
    for hyperspace in (HYPERSPACE, load_hyperspace("onnxw")):
        offered = HyperspaceModelSpace(hyperspace).simplify()
        choices = {name: choice.as_legacy_dict() for name, choice in offered.items()}
        assert choices == hyperspace.search_space()


def test_a_frozen_sample_is_the_space_and_the_space_is_the_sample(rng: np.random.Generator) -> None:
    space = HyperspaceModelSpace(HYPERSPACE)
    for _ in range(50):
        code = HYPERSPACE.random_space(rng)
        assert space.freeze(HYPERSPACE.parameters(code)) == code
    sample: dict[str, Any] = {}
    chosen = space.random(memo=sample)
    assert isinstance(chosen, SpaceCode)
    assert HYPERSPACE.parameters(chosen) == sample


def test_a_sample_of_another_space_is_refused() -> None:
    sample = {**HYPERSPACE.parameters(CODE), "stage2/block_type": "vgg"}
    with pytest.raises(SampleValidationError, match="vgg not found in"):
        HyperspaceModelSpace(HYPERSPACE).freeze(sample)


def test_a_file_and_a_preset_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.yaml").write_text(to_yaml(HYPERSPACE))
    monkeypatch.chdir(tmp_path)
    space = HyperspaceModelSpace("some.yaml")
    assert space.hyperspace == HYPERSPACE
    assert space.trace_kwargs == {"hyperspace": str(tmp_path / "some.yaml")}
    assert HyperspaceModelSpace("mobilew").trace_kwargs == {"hyperspace": "mobilew"}
    with pytest.raises(ConfigError, match="expected a YAML file or one of"):
        HyperspaceModelSpace("nowhere")


def test_a_hyperspace_travels_as_plain_data() -> None:
    data = json.loads(json.dumps(portable(HYPERSPACE)))
    assert portable(data) == data
    assert as_hyperspace(data) == HYPERSPACE
    with pytest.raises(ConfigError, match="hyperspace: Object missing required field"):
        as_hyperspace({"schema": 1})


def test_nnis_form_of_a_chosen_space_survives_the_way_to_a_trial() -> None:
    model = simplified().freeze(HYPERSPACE.parameters(CODE))
    text = nni.dump(model)
    assert "__nni_obj__" not in text
    assert nni.load(text).executable_model() == CODE


def test_our_form_of_a_chosen_space_survives_the_way_to_a_trial(tmp_path: Path) -> None:
    synthetic_lut(HYPERSPACE, CODE).save(tmp_path / "some.lut")
    evaluator = SpaceScoreEvaluator(tmp_path / "some.lut", [1.5], hyperspace=HYPERSPACE)
    parameters = HYPERSPACE.parameters(CODE)
    model = FrozenSpace(CODE, parameters, evaluator, 7, [0.5, 0.75])
    text = nni.dump(model)
    # No pickle, and NNI's page shows the space alone.
    assert "__nni_obj__" not in text
    assert json.loads(text)["mutation_summary"] == {
        "space": "synthetic-012-201",
        "stage1 block_type": "mbv1_dual",
        "stage1 width_window": "24, 32",
        "stage2 block_type": "mbv2_res",
        "stage2 width_window": "8, 16",
        "stage3 block_type": "resnet",
        "stage3 width_window": "16, 24",
    }
    loaded = nni.load(text)
    assert isinstance(loaded, FrozenSpace)
    assert loaded.status == ModelStatus.Frozen
    assert (loaded.executable_model(), loaded.sample) == (CODE, parameters)
    assert (loaded.evaluations, loaded.curve) == (7, [0.5, 0.75])
    assert loaded.evaluator.metrics(CODE) == evaluator.metrics(CODE)
    assert repr(loaded) == "FrozenSpace(synthetic-012-201, frozen)"


# ---- NNI's own strategies -----------------------------------------------------------------------


def evaluated(strategy: Strategy, evaluator: Any, models: int) -> dict[SpaceCode, float]:
    engine = SequentialExecutionEngine(max_model_count=models)
    strategy(simplified(evaluator), engine)
    return {model.executable_model(): model.metric for model in engine.list_models()}


@pytest.mark.parametrize(
    "strategy",
    [
        lambda: Random(seed=0),
        lambda: RegularizedEvolution(population_size=20, sample_size=8, mutation_prob=0.2, seed=0),
        lambda: GridSearch(seed=0),
    ],
    ids=["Random", "RegularizedEvolution", "GridSearch"],
)
def test_nnis_own_strategies_run_on_it(strategy: Any, evaluator: SpaceScoreEvaluator) -> None:
    found = evaluated(strategy(), evaluator, 60)
    assert len(found) == 60
    assert found == {code: evaluator.scoring.score(code).score for code in found}


def test_nnis_evolution_comes_near_the_known_best(evaluator: SpaceScoreEvaluator) -> None:
    evolution = RegularizedEvolution(population_size=20, sample_size=8, mutation_prob=0.2, seed=0)
    found = evaluated(evolution, evaluator, 250)
    assert max(found.values()) > 0.97 * evaluator.scoring.score(CODE).score


def test_nnis_raw_format_runs_too(evaluator: SpaceScoreEvaluator) -> None:
    engine = SequentialExecutionEngine(max_model_count=3)
    Random(seed=0)(RawFormatModelSpace(HyperspaceModelSpace(HYPERSPACE), evaluator), engine)
    assert len({model.executable_model() for model in engine.list_models()}) == 3


def test_the_hyperspace_of_another_name_is_another() -> None:
    other: Hyperspace = synthetic_hyperspace(name="other")
    code = HyperspaceModelSpace(other).freeze(HYPERSPACE.parameters(CODE))
    assert str(code) == "other-012-201"
