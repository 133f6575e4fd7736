"""A hyperspace as a model space of NNI, from which NNI's strategies and ours choose spaces.

What NNI calls a model is here a search space: freezing the model space gives a `SpaceCode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nni.mutable import Categorical, Sample
from nni.mutable.utils import label
from nni.nas.evaluator import Evaluator
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import ExecutableModelSpace, ModelStatus

from ..files import convert, plain
from ..hyperspace import Hyperspace, SpaceCode, load_hyperspace

HyperspaceSource = Hyperspace | str | Path | dict[str, Any]


class HyperspaceModelSpace(ModelSpace):
    """All candidate spaces of a hyperspace; one choice of block type and width window a stage.

    Labels and values are those of `Hyperspace.search_space`. An evaluator receives the chosen
    space as a `SpaceCode`.

    Parameters
    ----------
    hyperspace : a hyperspace, or its YAML file or preset

    Raises
    ------
    ConfigError
        Neither a file nor a preset; or a wrong key or value in the file.
    """

    def __init__(self, hyperspace: HyperspaceSource) -> None:
        super().__init__()
        self.hyperspace = as_hyperspace(hyperspace)
        for name, choice in self.hyperspace.search_space().items():
            # NNI refuses a slash in a label's text, but not between its parts.
            self.add_mutable(Categorical(choice["_value"], label=label(name.split("/"))))

    def save_init_arguments(self, hyperspace: HyperspaceSource) -> None:
        """What NNI writes into a trial's parameters to make this space anew there."""
        super().save_init_arguments(hyperspace=portable(hyperspace))

    def freeze(self, sample: Sample) -> SpaceCode:
        """The space that a sample chooses; raises NNI's `SampleValidationError`."""
        self.validate(sample)
        return self.hyperspace.from_parameters(sample)

    @classmethod
    def create_fixed_module(cls, sample: Sample, hyperspace: HyperspaceSource) -> SpaceCode:
        """What NNI makes of this class where a sample has been chosen, as in a trial."""
        return as_hyperspace(hyperspace).from_parameters(sample)


class FrozenSpace(ExecutableModelSpace):
    """A chosen space on its way into a trial, with the way to it.

    NNI's own form of it shows module paths and constructor arguments in the web UI; this one shows
    the space.

    Parameters
    ----------
    code : the space
    sample : the same as parameters, `Hyperspace.parameters`
    evaluator : what the trial does
    evaluations : spaces that the search had scored by then, this one included
    curve : best score so far, along the search up to this space
    """

    def __init__(
        self,
        code: SpaceCode,
        sample: Sample,
        evaluator: Evaluator | None,
        evaluations: int = 1,
        curve: Sequence[float] = (),
    ) -> None:
        super().__init__(ModelStatus.Frozen)
        self.code = code
        self.sample = sample
        self.evaluator = evaluator
        self.evaluations = evaluations
        self.curve = list(curve)

    def executable_model(self) -> SpaceCode:
        """What the evaluator receives."""
        return self.code

    def extra_repr(self) -> str:
        """The text between the parentheses of `repr`."""
        return f"{self.code}, {self.status.value}"

    def _dump(self) -> dict[str, Any]:
        # NNI's page shows what stands under `mutation_summary` instead of everything, and heads a
        # column with what stands before a label's first slash.
        shown = {name.replace("/", " "): _as_text(value) for name, value in self.sample.items()}
        return {
            "mutation_summary": {"space": str(self.code), **shown},
            "space": str(self.code),
            "sample": self.sample,
            "evaluator": self.evaluator,
            "evaluations": self.evaluations,
            "curve": self.curve,
        }

    @classmethod
    def _load(cls, *, space: str, mutation_summary: Any, **rest: Any) -> FrozenSpace:
        return cls(SpaceCode.parse(space), **rest)


def as_hyperspace(source: HyperspaceSource) -> Hyperspace:
    """A hyperspace from itself, its file, its preset or plain data; raises `ConfigError`."""
    if isinstance(source, Hyperspace):
        return source
    if isinstance(source, dict):
        return convert(source, Hyperspace, "hyperspace")
    return load_hyperspace(source)


def portable(source: HyperspaceSource) -> str | dict[str, Any]:
    """JSON data from which `as_hyperspace` of another process makes the same hyperspace."""
    if isinstance(source, Hyperspace):
        data: dict[str, Any] = plain(source)
        return data
    if isinstance(source, dict):
        return source
    return str(Path(source).resolve()) if Path(source).is_file() else str(source)


def _as_text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
