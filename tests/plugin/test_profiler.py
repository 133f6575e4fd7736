"""Latency as NNI's profiler, in NNI's own filter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from nni.mutable import Categorical, MutableDict, Sample, SampleValidationError
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.oneshot.pytorch.profiler import RangeProfilerFilter
from torch import Tensor, nn

from nni_spaceevo.errors import PredictorError
from nni_spaceevo.hyperspace import BlockConfig, PlacedBlock, place
from nni_spaceevo.plugin.profiler import LatencyProfiler
from nni_spaceevo.testing import MACsLatency

SPACE = MutableDict({"width": Categorical([8, 16, 32], label="width")})


def blocks_of(sample: Sample) -> Sequence[PlacedBlock]:
    """A convolution of the sampled width."""
    return place([BlockConfig("conv", 3, sample["width"], 3)], 8)


def test_a_sample_costs_what_the_predictor_says() -> None:
    latency = MACsLatency()
    profiler = LatencyProfiler(SPACE, latency, blocks_of)
    for width in (8, 16, 32):
        ms = 3 * width * 9 * 64 / latency.macs_per_ms + latency.network_overhead_ms
        assert profiler.profile({"width": width}) == pytest.approx(ms)


def test_nnis_filter_keeps_to_a_range() -> None:
    profiler = LatencyProfiler(SPACE, MACsLatency(), blocks_of)
    limit = profiler.profile({"width": 16})
    keeps = RangeProfilerFilter(profiler, min=limit, max=limit)
    assert [keeps({"width": width}) for width in (8, 16, 32)] == [False, True, False]


class Net(ModelSpace):
    """A model space of PyTorch with one choice."""

    def __init__(self) -> None:
        super().__init__()
        options = {str(k): nn.Conv2d(3, 8, k, padding=k // 2) for k in (3, 5)}
        self.conv = LayerChoice(options, label="kernel")

    def forward(self, images: Tensor) -> Tensor:
        """Features (n, 8, h, w) of images (n, 3, h, w)."""
        return self.conv(images)


def test_a_model_space_of_pytorch_is_filtered_too() -> None:
    def blocks(sample: Sample) -> Sequence[PlacedBlock]:
        (kernel_size,) = sample.values()
        return place([BlockConfig("conv", 3, 8, int(kernel_size))], 8)

    space = Net()
    (label,) = space.simplify()
    profiler = LatencyProfiler(space, MACsLatency(), blocks)
    keeps = RangeProfilerFilter(profiler, max=profiler.profile({label: "3"}))
    assert keeps({label: "3"})
    assert not keeps({label: "5"})


def test_a_sample_of_another_space_is_refused() -> None:
    profiler = LatencyProfiler(SPACE, MACsLatency(), blocks_of)
    with pytest.raises(SampleValidationError):
        profiler.profile({"width": 9})


def test_a_kernel_without_price_is_an_error_not_a_free_lunch() -> None:
    class Empty(MACsLatency):
        def chain_ms(self, chains: Sequence[Sequence[PlacedBlock]]) -> np.ndarray:
            raise PredictorError("no regressor for kernel 'conv'")

    with pytest.raises(PredictorError, match="conv"):
        LatencyProfiler(SPACE, Empty(), blocks_of).profile({"width": 8})


def test_nothing_else_of_the_plugin_imports_it() -> None:
    code = (
        "import sys, nni_spaceevo.plugin, nni_spaceevo.cli, nni_spaceevo.latency; "
        "print('nni_spaceevo.plugin.profiler' in sys.modules, 'nni' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
