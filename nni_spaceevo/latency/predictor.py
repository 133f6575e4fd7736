"""Latency predictors: the folder they are kept in, and predicting with them.

A folder holds `device.yaml` (what was measured, and the hashes of all other files; written last,
it is the commit), one `<kernel>.npz` a kernel type, and `report.json`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, FileAccessError, PredictorError
from ..files import Record, digest, read_json, read_yaml, to_json, to_yaml, write_atomically
from ..hyperspace import Kernel
from .features import FloatArray
from .lowering import KERNEL_TYPES, RuntimeKernel, lower
from .machine import Machine
from .regressor import Regressor

SCHEMA = 1
DEVICE_FILE = "device.yaml"
REPORT_FILE = "report.json"


class Calibration(Record, frozen=True):
    """Network latency from its kernels.

    `scale` * sum of kernels + `node_us` * operators + `weight_us_per_mb` * MB of weights
    + `constant_us`; all but the constant add up kernel by kernel.

    Attributes
    ----------
    scale : kernels inside a network find colder caches than alone
    node_us : microseconds that each operator costs on top
    weight_us_per_mb : microseconds to fetch a megabyte of weights anew; a kernel timed alone
        keeps them in its caches, a network that outgrows the caches does not
    constant_us : microseconds of a run: the call, quantizing the input, the output's way back
    """

    scale: float
    node_us: float
    weight_us_per_mb: float
    constant_us: float

    def __post_init__(self) -> None:
        values = (self.scale, self.node_us, self.weight_us_per_mb, self.constant_us)
        if not (np.isfinite(values).all() and min(values) >= 0 and self.scale > 0):
            raise PredictorError(
                f"calibration {values}: expected finite numbers, none negative, a positive scale"
            )


class KernelFile(Record, frozen=True):
    """A regressor file and its content's SHA-256."""

    file: str
    sha256: str


class Device(Record, frozen=True):
    """Content of `device.yaml`.

    Attributes
    ----------
    schema : version of the folder's format
    name : the predictor's name
    hyperspaces : fingerprints of the hyperspaces whose kernels were measured, by name
    machine : where
    calibration : from kernels to networks
    kernels : regressor files by kernel type
    report_sha256 : SHA-256 of `report.json`
    """

    schema: int
    name: str
    hyperspaces: dict[str, str]
    machine: Machine
    calibration: Calibration
    kernels: dict[str, KernelFile]
    report_sha256: str


class LatencyPredictor:
    """Predicts INT8 latencies from abstract kernels.

    Attributes
    ----------
    name : the predictor's name
    folder : where it was read from, for messages
    fingerprint : hash of everything that predictions depend on
    device : the machine, its runtime and options
    hyperspaces : fingerprints of the hyperspaces measured, by name
    calibration : from kernels to networks
    network_overhead_ms : milliseconds that a whole network costs beyond its kernels
    report : errors on held-out kernels and networks; see `format_report`
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        machine: Machine,
        hyperspaces: dict[str, str],
        calibration: Calibration,
        regressors: dict[str, Regressor],
        report: dict[str, Any],
    ) -> None:
        self.name = name
        self.folder = folder
        self.device = machine
        self.hyperspaces = hyperspaces
        self.calibration = calibration
        self.network_overhead_ms = calibration.constant_us / 1e3
        self.regressors = regressors
        self.report = report
        contents = (regressors[kind].to_bytes() for kind in sorted(regressors))
        self.fingerprint = digest(to_json(machine), to_json(calibration), *contents)
        # Searches ask for the same few thousand kernels over and over.
        self._places: dict[Kernel, int] = {}
        self._table: FloatArray = np.zeros((0, 3))

    def kernels_us(self, kernels: Sequence[RuntimeKernel]) -> FloatArray:
        """Latency of runtime kernels alone, microseconds, shape (n,), not calibrated.

        Raises
        ------
        PredictorError
            A kernel type has no regressor here.
        """
        result = np.empty(len(kernels))
        for kind in sorted({k.type for k in kernels}):
            if kind not in self.regressors:
                raise PredictorError(
                    f"{self.folder}: no regressor for kernel {kind!r}; it has "
                    f"{', '.join(sorted(self.regressors))}. Profile a hyperspace that uses it."
                )
            rows = [i for i, k in enumerate(kernels) if k.type == kind]
            result[rows] = self.regressors[kind].predict_us([kernels[i] for i in rows])
        return result

    def chain_sums(self, chains: Sequence[Sequence[Kernel]]) -> FloatArray:
        """What `Calibration` multiplies, shape (n, 3).

        The columns are the sum of kernel microseconds, the number of operators, and megabytes of
        INT8 weights. Raises as `chain_ms`.
        """
        kernels = list(itertools.chain.from_iterable(chains))
        places = [self._places.get(k, -1) for k in kernels]
        if -1 in places:
            unknown = (k for k, place in zip(kernels, places, strict=True) if place < 0)
            self._learn(dict.fromkeys(unknown))
            places = [self._places[k] for k in kernels]
        owner = np.repeat(np.arange(len(chains)), [len(chain) for chain in chains])
        columns = self._table[np.array(places, np.int64)].T
        return np.stack([np.bincount(owner, c, len(chains)) for c in columns], axis=1)

    def _learn(self, kernels: Iterable[Kernel]) -> None:
        parts = [(kernel, part) for kernel in kernels for part in lower(kernel)]
        us = self.kernels_us([part for _, part in parts])
        learned: dict[Kernel, tuple[float, int, float]] = {}
        for (kernel, part), part_us in zip(parts, us.tolist(), strict=True):
            sum_us, nodes, _ = learned.get(kernel, (0.0, 0, 0.0))
            learned[kernel] = (sum_us + part_us, nodes + part.nodes, kernel.params / 1e6)
        first = len(self._table)
        self._places |= {kernel: first + i for i, kernel in enumerate(learned)}
        self._table = np.concatenate([self._table, np.array(list(learned.values()), np.float64)])

    def chain_ms(self, chains: Sequence[Sequence[Kernel]]) -> FloatArray:
        """Additive latency of lists of abstract kernels, without a network's constant.

        Parameters
        ----------
        chains : n lists of kernels, such as the kernels of n sub-stages

        Returns
        -------
        Milliseconds, shape (n,); an empty list costs 0.

        Raises
        ------
        PredictorError
            A kernel that this predictor has no regressor for; it never costs 0.
        """
        c = self.calibration
        # A matrix product's last bits depend on a row's neighbours; a sum by rows does not.
        costs = self.chain_sums(chains) * (c.scale, c.node_us, c.weight_us_per_mb)
        return costs.sum(axis=1) / 1e3

    def network_ms(self, chains: Sequence[Sequence[Kernel]]) -> FloatArray:
        """Latency of n whole networks given as lists of kernels, milliseconds, shape (n,).

        Raises as `chain_ms`.
        """
        return self.chain_ms(chains) + self.network_overhead_ms

    def save(self, folder: Path) -> None:
        """Write the folder; killed half-way, it is refused by `load_predictor`, never misread.

        Raises
        ------
        FileAccessError
            The folder cannot be written.
        """
        kernels = {}
        for kind, regressor in sorted(self.regressors.items()):
            content = regressor.to_bytes()
            kernels[kind] = KernelFile(file=f"{kind}.npz", sha256=_sha256(content))
            write_atomically(folder / f"{kind}.npz", content)
        report = to_json(self.report)
        write_atomically(folder / REPORT_FILE, report)
        device = Device(
            schema=SCHEMA,
            name=self.name,
            hyperspaces=self.hyperspaces,
            machine=self.device,
            calibration=self.calibration,
            kernels=kernels,
            report_sha256=_sha256(report.encode()),
        )
        write_atomically(folder / DEVICE_FILE, to_yaml(device))
        # Regressors of an earlier predictor that this one has no use for would only mislead.
        for kind in set(KERNEL_TYPES) - kernels.keys():
            (folder / f"{kind}.npz").unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def load_predictor(folder: Path | str) -> LatencyPredictor:
    """Read a predictor folder and check every file's hash.

    Raises
    ------
    PredictorError
        No such folder, another schema, or a missing, damaged or mismatched file; names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PredictorError(f"{folder}: no such latency predictor folder")
    path = folder / DEVICE_FILE
    try:
        device = _read_device(path)
        regressors = {
            kind: Regressor.from_bytes(
                _read_checked(folder, entry.file, entry.sha256), kind, str(folder / entry.file)
            )
            for kind, entry in device.kernels.items()
        }
        _read_checked(folder, REPORT_FILE, device.report_sha256)
        report = read_json(folder / REPORT_FILE, dict)
    except (ConfigError, FileAccessError) as error:
        raise PredictorError(f"latency predictor {error}") from error
    return LatencyPredictor(
        device.name,
        folder,
        device.machine,
        device.hyperspaces,
        device.calibration,
        regressors,
        report,
    )


def _read_device(path: Path) -> Device:
    # The version first: another version's other keys would only confuse.
    schema = read_yaml(path, dict).get("schema")
    if schema != SCHEMA:
        raise PredictorError(
            f"{path}: latency predictor schema {schema!r}; this version reads {SCHEMA}"
        )
    try:
        return read_yaml(path, Device)
    except PredictorError as error:
        raise PredictorError(f"{path}: {error}") from error


def _read_checked(folder: Path, name: str, sha256: str) -> bytes:
    path = folder / name
    if Path(name).name != name:
        raise PredictorError(f"{folder / DEVICE_FILE}: file name {name!r} leaves the folder")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PredictorError(f"{path}: cannot read ({error.strerror})") from error
    if _sha256(content) != sha256:
        raise PredictorError(
            f"{path}: content does not match its hash in {DEVICE_FILE}; the file is damaged or "
            "belongs to another predictor"
        )
    return content
