"""A job: one YAML file with everything that leads from images to a search space.

`examples/digits/spaceevo.yaml` is one. The tuner, the trials and the command line all read it, and
find the results of each step in its work folder.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from ..files import Record, read_yaml
from ..hyperspace import Hyperspace, load_hyperspace

SCHEMA = 1


class TeacherConfig(Record, frozen=True):
    """How the teacher is trained.

    Attributes
    ----------
    widths : channels after the stem and after each searchable stage
    epochs, learning_rate, batch_size : AdamW with a one-cycle schedule
    min_accuracy : least accuracy on the held-out images; below it the job stops
    """

    widths: tuple[int, ...]
    epochs: int
    learning_rate: float = 3e-3
    batch_size: int = 64
    min_accuracy: float = 0.97


class DistillConfig(Record, frozen=True):
    """Block-wise distillation of every (stage, block type); defaults as published.

    Attributes
    ----------
    epochs_fp32, epochs_int8 : epochs in FP32, then with LSQ+
    learning_rate_fp32, learning_rate_int8 : peak rates of the two phases (Adam, cosine)
    batch_size : images per step
    random_substages : sub-stages per step besides the largest and the smallest
    """

    epochs_fp32: int = 5
    epochs_int8: int = 1
    learning_rate_fp32: float = 5e-3
    learning_rate_int8: float = 1.25e-3
    batch_size: int = 64
    random_substages: int = 2


class LUTConfig(Record, frozen=True):
    """How the LUT is sampled.

    Attributes
    ----------
    rows_per_cell : sub-stages per (stage, block type, width window), over all resolutions
    calibration_images : images on which BatchNorm is recalibrated for each sub-stage
    """

    rows_per_cell: int = 1000
    calibration_images: int = 256


class SearchConfig(Record, frozen=True):
    """What makes a space good; defaults as published.

    Attributes
    ----------
    constraints_ms : latency constraints T in milliseconds
    constraint_quantiles : instead of `constraints_ms`: the T that these shares of random subnets
        stay within, so that the job fits a device of any speed
    samples, top, t, a : see `nni_spaceevo.search.QTConfig`
    """

    constraints_ms: tuple[float, ...] = ()
    constraint_quantiles: tuple[float, ...] = ()
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


class JobConfig(Record, frozen=True):
    """The contents of a job file.

    Attributes
    ----------
    schema : version of the file format
    hyperspace : YAML file (relative to the job file) or preset
    dataset : name of a dataset
    teacher, distill, lut, search : the steps
    predictor : folder of a latency predictor (relative to the job file, or one that comes with the
        package); None profiles this machine into the work folder
    work_dir : where results are kept, relative to the job file
    seed : of everything random
    """

    schema: int
    hyperspace: str
    dataset: str
    teacher: TeacherConfig
    search: SearchConfig
    distill: DistillConfig = DistillConfig()
    lut: LUTConfig = LUTConfig()
    predictor: str | None = None
    work_dir: str = "work"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"job schema {self.schema}; this version reads {SCHEMA}")


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
        self.hyperspace: Hyperspace = load_hyperspace(self._beside(self.config.hyperspace))

    def _beside(self, name: str) -> str:
        """A file relative to the job file, or the name itself where there is no such file."""
        beside = self.path.parent / name
        return str(beside) if beside.exists() else name

    @property
    def work(self) -> Path:
        """Folder of all results."""
        return self.path.parent / self.config.work_dir

    @property
    def teacher_path(self) -> Path:
        """The trained teacher."""
        return self.work / "teacher.pt"

    @property
    def stages_path(self) -> Path:
        """Folder of the distilled stages, one checkpoint a (stage, block type)."""
        return self.work / "stages"

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
    def report_path(self) -> Path:
        """Folder of the report."""
        return self.work / "report"
