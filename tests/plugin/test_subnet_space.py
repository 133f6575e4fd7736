"""A space as NNI's model space: its samples, its subnets, and NNI's own strategies on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.mutable import SampleValidationError
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.experiment import NasExperimentConfig
from nni.nas.oneshot.pytorch.profiler import RangeProfilerFilter
from nni.nas.space import RawFormatModelSpace, SimplifiedModelSpace, model_context
from nni.nas.strategy import Random, RandomOneShot, RegularizedEvolution, Strategy
from nni.nas.strategy.middleware import Chain, Filter
from supernet.tiny import stripes, tiny_hyperspace, uniform, used_supernet
from torch.utils.data import TensorDataset

from nni_spaceevo.errors import CheckpointError, CodeError
from nni_spaceevo.hyperspace import SubnetChoices, load_hyperspace
from nni_spaceevo.network import StaticNetwork
from nni_spaceevo.plugin.profiler import LatencyProfiler
from nni_spaceevo.plugin.subnet_space import SubnetModelSpace
from nni_spaceevo.quant import INT8
from nni_spaceevo.supernet.model import Subnet
from nni_spaceevo.supernet.weights import save_supernet
from nni_spaceevo.testing import MACsLatency

TINY = tiny_hyperspace()
CODE = uniform(TINY)
IMAGES = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def tiny_space(**kwargs: Any) -> SubnetModelSpace:
    torch.manual_seed(0)
    return SubnetModelSpace(TINY, CODE, **kwargs)


SPACE = tiny_space().eval()


# ---- samples and subnets ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "onnxw"])
def test_its_labels_and_values_are_the_choices_of_the_spaces_subnets(name: str) -> None:
    hyperspace = TINY if name == "tiny" else load_hyperspace(name)
    space = hyperspace.random_space(np.random.default_rng(0)) if name == "onnxw" else CODE
    model_space = SubnetModelSpace(hyperspace, str(space))
    offered = {name: tuple(choice.values) for name, choice in model_space.simplify().items()}
    assert offered == SubnetChoices(hyperspace, space).values


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_a_subnet_freezes_to_itself(seed: int) -> None:
    code = TINY.random_subnet(CODE, np.random.default_rng(seed))
    frozen = SPACE.freeze(SPACE.choices.sample(code))
    assert isinstance(frozen, StaticNetwork)
    assert frozen.code == code
    SPACE.activate(code)
    assert torch.equal(frozen(IMAGES), SPACE(IMAGES))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_whatever_nni_samples_is_a_subnet(seed: int) -> None:
    sample: dict[str, Any] = {}
    frozen = SPACE.random(memo=sample, random_state=np.random.RandomState(seed))
    assert SPACE.choices.subnet(sample) == frozen.code
    assert SPACE.contains(SPACE.choices.sample(frozen.code))
    assert SPACE.choices.subnet(SPACE.choices.sample(frozen.code)) == frozen.code


def test_a_sample_of_another_space_is_refused() -> None:
    sample = SPACE.choices.sample(TINY.largest_subnet(CODE))
    with pytest.raises(SampleValidationError, match="64 not found in"):
        SPACE.freeze({**sample, "stage1/block1/width": 64})
    with pytest.raises(CodeError, match="width 24; allowed"):
        SPACE.activate(TINY.largest_subnet(uniform(TINY, window=1)))


# ---- in trials of their own ---------------------------------------------------------------------


def in_a_trial(space: SubnetModelSpace, sample: dict[str, Any]) -> Subnet:
    """What a trial makes of a sample, by the way of NNI's parameters."""
    text = nni.dump(SimplifiedModelSpace.from_model(space).freeze(sample))
    assert "__nni_obj__" not in text
    model = nni.load(text).executable_model()
    assert isinstance(model, Subnet)
    return model


def test_a_trial_gets_the_subnet_with_the_weights_of_the_file(tmp_path: Path) -> None:
    trained = used_supernet(TINY, CODE, INT8)
    save_supernet(tmp_path / "some.pt", trained)
    space = tiny_space(weights=tmp_path / "some.pt")
    code = TINY.random_subnet(CODE, np.random.default_rng(1))
    sample = space.choices.sample(code)
    expected = trained(IMAGES, code)
    assert torch.equal(space.freeze(sample)(IMAGES), expected)
    assert torch.equal(in_a_trial(space, sample)(IMAGES), expected)


def test_a_trial_without_a_file_gets_the_subnet_with_fresh_weights() -> None:
    code = TINY.smallest_subnet(CODE)
    model = in_a_trial(SPACE, json.loads(json.dumps(SPACE.choices.sample(code))))
    assert model.code == code
    assert model(IMAGES).shape == (2, 4)
    with model_context(SPACE.choices.sample(code)):
        assert SubnetModelSpace(TINY, CODE).code == code


def test_weights_of_another_space_are_refused_by_name(tmp_path: Path) -> None:
    save_supernet(tmp_path / "some.pt", used_supernet(TINY, uniform(TINY, window=1)))
    with pytest.raises(CheckpointError, match=r"some\.pt: .*tiny-00-11, expected tiny-00-00"):
        tiny_space(weights=tmp_path / "some.pt")


# ---- latency ------------------------------------------------------------------------------------


def tiny_profiler() -> LatencyProfiler:
    return LatencyProfiler(SPACE, MACsLatency(), SPACE.blocks_of)


def test_the_profiler_prices_the_whole_subnet() -> None:
    profiler, rng = tiny_profiler(), np.random.default_rng(2)
    for _ in range(10):
        code = TINY.random_subnet(CODE, rng)
        blocks = SPACE.blocks_of(SPACE.choices.sample(code))
        assert blocks[0].hw == code.resolution
        assert len(blocks) == sum(map(len, code.stages)) + len(TINY.head)
        ms = sum(k.macs for block in blocks for k in block.kernels) / 1e6 + 0.01
        assert profiler.profile(SPACE.choices.sample(code)) == pytest.approx(ms)


def latencies(codes: Any) -> list[float]:
    profiler = tiny_profiler()
    return [profiler.profile(SPACE.choices.sample(code)) for code in codes]


def middle_ms() -> float:
    rng = np.random.default_rng(3)
    return float(np.median(latencies(TINY.random_subnet(CODE, rng) for _ in range(100))))


# ---- NNI's own strategies -----------------------------------------------------------------------


def size(model: Subnet) -> None:
    """What a trial reports here: the more weights, the better."""
    nni.report_final_result(float(sum(p.numel() for p in model.parameters())))


def evaluated(strategy: Strategy, models: int) -> list[Any]:
    engine = SequentialExecutionEngine(max_model_count=models)
    strategy(RawFormatModelSpace(SPACE, FunctionalEvaluator(size)), engine)
    return list(engine.list_models())


def test_nnis_random_search_runs_on_it() -> None:
    models = evaluated(Random(seed=0), 20)
    codes = [SPACE.choices.subnet(model.sample) for model in models]
    assert len(set(codes)) > 15
    sizes = [float(sum(p.numel() for p in SPACE.supernet.extract(c).parameters())) for c in codes]
    assert [model.metric for model in models] == sizes


def test_nnis_evolution_finds_large_subnets_within_a_latency() -> None:
    limit = middle_ms()
    keeps = RangeProfilerFilter(tiny_profiler(), max=limit)
    evolution = RegularizedEvolution(population_size=16, sample_size=8, mutation_prob=0.1, seed=0)
    models = evaluated(Chain(evolution, Filter(lambda model: keeps(model.sample))), 60)
    assert len(models) == 60
    assert max(latencies(SPACE.choices.subnet(m.sample) for m in models)) <= limit
    metrics = [model.metric for model in models]
    assert np.mean(metrics[-20:]) > np.mean(metrics[:16])


def test_nni_keeps_its_weights_in_this_process_by_default() -> None:
    config = NasExperimentConfig.default(SPACE, FunctionalEvaluator(size), Random())
    assert (config.execution_engine.name, config.model_format.name) == ("sequential", "raw")


def one_shot_evaluator(epochs: int) -> Classification:
    data = stripes()
    loaders = {
        "train_dataloaders": DataLoader(TensorDataset(data.images, data.labels), batch_size=16),
        "val_dataloaders": DataLoader(TensorDataset(data.test_images, data.test_labels), 40),
    }
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    return Classification(
        learning_rate=0.01, num_classes=4, max_epochs=epochs, **loaders, **quiet, accelerator="cpu"
    )


@pytest.mark.filterwarnings("ignore")
def test_nnis_one_shot_strategy_trains_it_within_a_latency() -> None:
    space, limit, drawn = tiny_space(), middle_ms(), []
    profiler = LatencyProfiler(space, MACsLatency(), space.blocks_of)
    keeps = RangeProfilerFilter(profiler, max=limit)

    def keep(sample: dict[str, Any]) -> bool:
        drawn.append(space.choices.subnet(sample))
        return keeps(sample)

    before = {name: p.clone() for name, p in space.named_parameters()}
    strategy = RandomOneShot(filter=keep)
    strategy(RawFormatModelSpace(space, one_shot_evaluator(3)), SequentialExecutionEngine())
    assert strategy.supernet is space
    assert len(set(drawn)) > 18
    assert min(latencies(drawn)) < limit < max(latencies(drawn))
    moved = [n for n, p in space.named_parameters() if not torch.equal(p, before[n])]
    assert {name.split(".")[2] for name in moved} == {stage.name for stage in TINY.stages}
    (best,) = strategy.list_models()
    subnet = best.executable_model()
    assert torch.equal(subnet.eval()(IMAGES), space.eval().supernet(IMAGES, subnet.code))


def test_what_one_shot_strategies_draw_follows_from_torchs_seed() -> None:
    def drawn(seed: int) -> list[dict[str, Any]]:
        torch.manual_seed(seed)
        return [SPACE.resample({}) for _ in range(5)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_memo_is_kept() -> None:
    sample = SPACE.choices.sample(TINY.largest_subnet(CODE))
    half = dict(list(sample.items())[::2])
    assert half.items() <= SPACE.resample(half).items()
    assert SPACE.resample(sample) == sample
    assert SPACE.active == TINY.largest_subnet(CODE)
    assert SPACE.export(half).keys() == sample.keys() - half.keys()
