"""Latency as a profiler of NNI: its strategies then keep to a range of milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nni.mutable import Sample
from nni.nas.profiler import Profiler
from nni.nas.space import BaseModelSpace

from ..hyperspace import PlacedBlock
from ..lut.table import LatencyModel


class LatencyProfiler(Profiler):
    """Latency in milliseconds of the model that a sample of a model space stands for.

    It takes the place of NNI's `NnMeterProfiler`, for example in a `RangeProfilerFilter`.

    Parameters
    ----------
    model_space : the space that samples are of
    latency : a latency predictor of this package, or anything that prices blocks
    blocks_of : the blocks of a sample's model, each with the size of its input; `place` gives them
    """

    def __init__(
        self,
        model_space: BaseModelSpace,
        latency: LatencyModel,
        blocks_of: Callable[[Sample], Sequence[PlacedBlock]],
    ) -> None:
        super().__init__(model_space)
        self.model_space = model_space
        self.latency = latency
        self.blocks_of = blocks_of

    def profile(self, sample: Sample) -> float:
        """Milliseconds of the whole network.

        Parameters
        ----------
        sample : a choice for every label of the model space

        Raises
        ------
        nni.mutable.SampleValidationError
            The sample is not of this model space.
        PredictorError
            A kernel that the predictor has no regressor for.
        """
        self.model_space.validate(sample)
        return float(self.latency.network_ms([list(self.blocks_of(sample))])[0])
