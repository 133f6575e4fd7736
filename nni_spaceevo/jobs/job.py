"""A job: one YAML file with everything that leads from images to a search space.

`examples/digits/spaceevo.yaml` is one. The tuner, the trials and the command line all read it, and
find the results of each step in its work folder.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from ..distill.config import (
    DatasetConfig,
    DistillConfig,
    PretrainedConfig,
    TeacherConfig,
    dataset_config,
    teacher_config,
)
from ..errors import ConfigError
from ..files import Record, read_yaml
from ..hyperspace import Hyperspace, load_hyperspace
from ..lut.config import LUTConfig
from ..search import QTConfig
from ..search.subnets import SubnetSearchConfig
from ..supernet.config import SupernetConfig

SCHEMA = 1
_QUANTILES = (0.25, 0.5, 0.75)


class SearchConfig(Record, frozen=True):
    """What makes a space good; defaults as published.

    Attributes
    ----------
    constraints_ms : latency constraints T in milliseconds
    constraint_quantiles : instead of `constraints_ms`: the T that these shares of random subnets
        stay within, so that the job fits a device of any speed
    estimator, samples, top, t, a : see `nni_spaceevo.search.QTConfig`
    """

    constraints_ms: tuple[float, ...] = ()
    constraint_quantiles: tuple[float, ...] = ()
    estimator: Literal["exact", "sampled"] = "exact"
    samples: int = 100_000
    top: int = 50
    t: float = 0.08
    a: float = 0.01

    def __post_init__(self) -> None:
        if bool(self.constraints_ms) == bool(self.constraint_quantiles):
            raise ConfigError("search: give either constraints_ms or constraint_quantiles")
        if not all(0 < q < 1 for q in self.constraint_quantiles):
            raise ConfigError(
                f"search: constraint_quantiles must lie within 0 to 1, "
                f"given {list(self.constraint_quantiles)}"
            )
        try:
            # What quantiles come to is known once there is a LUT; all else is refused here.
            self.scoring(self.constraints_ms or (1.0,), seed=0)
        except ConfigError as error:
            raise ConfigError(f"search: {error}") from error

    def scoring(self, constraints_ms: tuple[float, ...], seed: int) -> QTConfig:
        """How spaces are scored, with the constraints in milliseconds."""
        return QTConfig(
            constraints_ms=constraints_ms,
            estimator=self.estimator,
            samples=self.samples,
            top=self.top,
            t=self.t,
            a=self.a,
            seed=seed,
        )


class SubnetsConfig(SubnetSearchConfig, frozen=True):
    """Which subnets of a supernet are searched for, and how.

    Attributes
    ----------
    constraints_ms : latency constraints T in milliseconds
    constraint_quantiles : instead of `constraints_ms`: the T that these shares of the space's
        random subnets stay within
    evolution, surrogate : see `nni_spaceevo.search.subnets.SubnetSearchConfig`
    """

    constraints_ms: tuple[float, ...] = ()
    constraint_quantiles: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.constraints_ms and self.constraint_quantiles:
            raise ConfigError("subnets: give either constraints_ms or constraint_quantiles")
        if not all(0 < T < math.inf for T in self.constraints_ms):
            raise ConfigError(
                f"subnets: constraints_ms must be above 0, given {list(self.constraints_ms)}"
            )
        if not all(0 < q <= 1 for q in self.constraint_quantiles):
            raise ConfigError(
                "subnets: constraint_quantiles must be above 0, up to 1, given "
                f"{list(self.constraint_quantiles)}"
            )


class JobConfig(Record, frozen=True):
    """The contents of a job file.

    Attributes
    ----------
    schema : version of the file format
    hyperspace : YAML file (relative to the job file) or preset
    dataset : name of a dataset, or its settings; see `nni_spaceevo.distill.config`
    teacher : settings of one to train, or of a pretrained one; see there
    distill, lut, search, supernet, subnets : the other steps
    predictor : folder of a latency predictor (relative to the job file, or one that comes with the
        package), or of an nn-Meter predictor; None profiles this machine into the work folder
    trust_pickle : read an nn-Meter predictor's pickles, which runs whatever code is in them
    work_dir : where results are kept, relative to the job file
    seed : of everything random
    """

    schema: int
    hyperspace: str
    dataset: str | dict[str, Any]
    teacher: dict[str, Any]
    search: SearchConfig
    distill: DistillConfig = DistillConfig()
    lut: LUTConfig = LUTConfig()
    supernet: SupernetConfig = SupernetConfig()
    subnets: SubnetsConfig = SubnetsConfig()
    predictor: str | None = None
    trust_pickle: bool = False
    work_dir: str = "work"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"job schema {self.schema}; this version reads {SCHEMA}")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, given {self.seed}")
        if self.supernet.seed:
            raise ConfigError("supernet: seed is the job's; give it outside of supernet")

    @property
    def subnet_constraints_ms(self) -> tuple[float, ...]:
        """T of the subnets, in milliseconds: their own, or those that the search was for.

        Empty where quantiles say it: the job's, or `subnet_quantiles` by default.
        """
        own = self.subnets.constraints_ms
        return own if own or self.subnets.constraint_quantiles else self.search.constraints_ms

    @property
    def subnet_quantiles(self) -> tuple[float, ...]:
        """Shares of random subnets that give T where milliseconds do not."""
        return self.subnets.constraint_quantiles or _QUANTILES


class Job:
    """A job file, read and checked, and the places of its results.

    Parameters
    ----------
    path : the YAML file

    Raises
    ------
    ConfigError
        Wrong key or value, naming the file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).resolve()
        self.config = read_yaml(self.path, JobConfig)
        where = f"{self.path}: {{}}".format
        self.dataset: DatasetConfig = dataset_config(self.config.dataset, where("dataset"))
        self.teacher: TeacherConfig | PretrainedConfig = teacher_config(
            self.config.teacher, where("teacher")
        )
        self.hyperspace: Hyperspace = load_hyperspace(self._beside(self.config.hyperspace))
        # Rather than hours later, when a supernet is to be trained.
        self.hyperspace.check_resolutions()

    def _beside(self, name: str) -> str:
        """A file relative to the job file, or the name itself where there is no such file."""
        beside = self.path.parent / name
        return str(beside) if beside.exists() else name

    def seed(self, given: int | None) -> int:
        """A seed that was given, or else the job's."""
        return self.config.seed if given is None else given

    @property
    def dataset_name(self) -> str:
        """The dataset's name or import path."""
        given = self.config.dataset
        return given if isinstance(given, str) else str(given["name"])

    @property
    def work(self) -> Path:
        """Folder of all results."""
        return self.path.parent / self.config.work_dir

    @property
    def teacher_path(self) -> Path:
        """What was trained of the teacher: all of a small one, a pretrained one's ranges."""
        return self.work / "teacher.pt"

    @property
    def stages_path(self) -> Path:
        """Folder of the distilled stages, one checkpoint a (stage, block type)."""
        return self.work / "stages"

    @property
    def features_path(self) -> Path:
        """Folder of the teacher's features, if they are kept; they may be deleted at any time."""
        return self.work / "features"

    @property
    def rows_path(self) -> Path:
        """Folder of the distilled rows, one file a (stage, block type)."""
        return self.work / "rows"

    @property
    def lut_path(self) -> Path:
        """The quantized LUT."""
        return self.work / f"{self.hyperspace.name}.lut"

    @property
    def constraints_path(self) -> Path:
        """The latency constraints in milliseconds, once resolved."""
        return self.work / "constraints.json"

    @property
    def search_path(self) -> Path:
        """All scored spaces of the last search."""
        return self.work / "search.json"

    @property
    def supernets_path(self) -> Path:
        """Folder of the supernets, in one folder a seed."""
        return self.work / "supernets"

    @property
    def subnets_path(self) -> Path:
        """Folder of the subnets that were searched for, in one folder a seed and space."""
        return self.work / "subnets"

    @property
    def exported_path(self) -> Path:
        """Folder of the subnets that are ONNX files, with a report beside each."""
        return self.work / "exported"

    @property
    def comparison_path(self) -> Path:
        """Folder of the comparison with manually designed spaces."""
        return self.work / "comparison"

    @property
    def report_path(self) -> Path:
        """Folder of the report."""
        return self.work / "report"
