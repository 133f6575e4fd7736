"""Latency predictors: the folder they are kept in, and predicting with them.

A folder holds `device.yaml` (what was measured, and the hashes of all other files; written last,
it is the commit), one `<kernel>-<hash>.npz` a kernel type, and `report.json`. Reading one executes
nothing and needs nothing but numpy.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import ConfigError, FileAccessError, PredictorError, PredictorWarning
from ..files import (
    Record,
    convert,
    digest,
    packed_folder,
    read_json,
    read_yaml,
    to_json,
    to_yaml,
    write_atomically,
)
from ..hyperspace import Kernel, PlacedBlock
from .features import FloatArray
from .lowering import Lowering, RuntimeKernel
from .machine import Machine
from .regressor import Regressor

SCHEMA = 2
DEVICE_FILE = "device.yaml"
REPORT_FILE = "report.json"
_NEW_REPORT = ".report.json.new"
_MISMATCH = (
    f"content does not match its hash in {DEVICE_FILE}; the file is damaged or belongs to "
    "another predictor"
)


class Calibration(Record, frozen=True):
    """Network latency from its kernels.

    What adds up is `scales` * kernels + `node_us` * operators + `weight_us_per_mb` * MB of weights,
    and `constant_us` once a network. Of a sum of `sums_us` a network costs `shares`,
    less where it is small and finds most of itself in the caches; between them the share follows
    the sum's logarithm.

    Attributes
    ----------
    scale : kernels inside a network find colder caches than alone
    scales : the same by kernel type; a type that it does not name has `scale`
    node_us : microseconds that each operator costs on top
    weight_us_per_mb : microseconds to fetch a megabyte of weights anew (in float, four); a kernel
        timed alone keeps them in its caches, a network that outgrows the caches does not
    kept_mb : of weights, up to which a kernel timed alone keeps them; of twice as many it keeps
        none, and is timed with fetching them already. None where all are kept
    cold_mb : of weights, from which convolutions were timed with caches that held none of them;
        None where all were timed one run after another
    constant_us : microseconds of a run: the call, quantizing the input, the output's way back
    sums_us, shares : microseconds, ascending, and the share of the sum that a network costs there;
        beyond the ends it is that of the end
    """

    scale: float
    node_us: float
    weight_us_per_mb: float
    constant_us: float
    scales: dict[str, float] = msgspec.field(default_factory=dict)
    sums_us: tuple[float, ...] = (1.0,)
    shares: tuple[float, ...] = (1.0,)
    kept_mb: float | None = None
    cold_mb: float | None = None

    def __post_init__(self) -> None:
        scales = (self.scale, *self.scales.values())
        values = (*scales, self.node_us, self.weight_us_per_mb, self.constant_us)
        if not (np.isfinite(values).all() and min(values) >= 0 and min(scales) > 0):
            raise PredictorError(
                f"calibration {values}: expected finite numbers, none negative, a positive scale"
            )
        for name in ("kept_mb", "cold_mb"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise PredictorError(
                    f"calibration: {name} is {value}; expected a positive number or none"
                )
        sums, shares = np.array(self.sums_us), np.array(self.shares)
        possible = len(sums) == len(shares) > 0 and (np.diff(sums, prepend=0) > 0).all()
        if not (
            possible and np.isfinite(sums).all() and (np.diff(sums * shares, prepend=0) > 0).all()
        ):
            raise PredictorError(
                f"calibration: shares {self.shares} of {self.sums_us} us: expected as many of one "
                "as of the other, ascending sums, and networks that cost more where sums are larger"
            )

    def scale_of(self, kind: str) -> float:
        """What kernels of a type cost inside a network, as a multiple of what they cost alone."""
        return self.scales.get(kind, self.scale)

    def fetched_mb(self, kernel: Kernel) -> float:
        """Megabytes of INT8 weights that a network fetches for a kernel, which alone has them."""
        weights = kernel.params / 1e6
        if self.cold_mb is not None and kernel.op == "conv" and weights >= self.cold_mb:
            return 0.0
        if self.kept_mb is None:
            return weights
        # Squeeze-and-excite reads a weight once and does next to nothing with it: it waits for
        # the memory as much alone.
        if kernel.op == "se":
            return 0.0
        return max(min(weights, 2 * self.kept_mb - weights), 0.0)


# No calibration: a network is the sum of its kernels.
AS_THEY_ARE = Calibration(scale=1.0, node_us=0.0, weight_us_per_mb=0.0, constant_us=0.0)


class KernelFile(Record, frozen=True):
    """A regressor file, its content's SHA-256, and the range that it was fitted in.

    Attributes
    ----------
    file, sha256 : the file, and the hash of its content
    least, most : smallest and largest value met of each field in `RANGED`
    activations : those met; none where that was not kept
    """

    file: str
    sha256: str
    least: tuple[float, ...]
    most: tuple[float, ...]
    activations: tuple[str, ...] = ()


class Device(Record, frozen=True):
    """Content of `device.yaml`.

    Attributes
    ----------
    schema : version of the folder's format
    name : the predictor's name
    device : what `spaceevo profile --device` was given, or where published figures come from
    precision : of the networks, "int8" or "float32"
    hyperspaces : fingerprints of the hyperspaces whose kernels were measured, by name
    machine : where
    lowering : how the runtime runs each kind of kernel
    calibration : from kernels to networks
    failures : what its accuracy gate asked for and did not get; empty if it passed
    notes : what a user should know, such as values that are estimated
    kernels : regressor files by kernel type
    report_sha256 : SHA-256 of `report.json`
    """

    schema: int
    name: str
    device: str
    precision: str
    hyperspaces: dict[str, str]
    machine: Machine
    lowering: Lowering
    calibration: Calibration
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    kernels: dict[str, KernelFile]
    report_sha256: str


# Networks are told of that are so much faster or slower than those of the calibration.
_BEYOND = 0.1
# Fields of a runtime kernel whose range is kept with its regressor.
RANGED = ("hw", "cin", "cout", "kernel_size", "stride", "squeezed", "expand")


@dataclass(frozen=True)
class FittedKernel:
    """A regressor and the range that it was fitted in.

    Attributes
    ----------
    regressor : predicts one kernel type
    least, most : smallest and largest value met of each field in `RANGED`
    activations : those met; none where that is not known
    """

    regressor: Regressor
    least: tuple[float, ...]
    most: tuple[float, ...]
    activations: tuple[str, ...] = ()

    @classmethod
    def of(cls, regressor: Regressor, kernels: Sequence[RuntimeKernel]) -> FittedKernel:
        """With the range of the kernels that it was fitted to."""
        columns = [[getattr(k, name) for k in kernels] for name in RANGED]
        met = tuple(sorted({k.activation for k in kernels}))
        return cls(regressor, tuple(map(min, columns)), tuple(map(max, columns)), met)

    def outside(self, kernel: RuntimeKernel) -> list[str]:
        """What of a kernel lies outside the range, in words."""
        values = [getattr(kernel, name) for name in RANGED]
        limits = zip(RANGED, values, self.least, self.most, strict=True)
        found = [
            f"{name} {value:g} (fitted for {least:g} to {most:g})"
            for name, value, least, most in limits
            if not least <= value <= most
        ]
        if self.activations and kernel.activation not in self.activations:
            found.append(
                f"activation {kernel.activation} (fitted for {', '.join(self.activations)})"
            )
        return found


@dataclass(frozen=True)
class Provenance:
    """Where a predictor comes from: the fields of `Device` that are not about prediction."""

    name: str
    device: str
    precision: str
    machine: Machine
    hyperspaces: dict[str, str]
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class LatencyPredictor:
    """Predicts latencies of networks from their blocks.

    Parameters
    ----------
    provenance : where it comes from
    lowering : how the runtime runs each kind of kernel
    calibration : from kernels to networks
    kernels : regressors by kernel type
    report : errors on held-out kernels and networks; see `format_report`
    folder : where it was read from, for messages

    Attributes
    ----------
    name : the predictor's name
    kinds : kernel types that it prices, sorted
    network_overhead_ms : milliseconds that a whole network adds to the sum of its blocks
    extrapolated : kernels priced outside the range that was measured, with what is outside
    """

    def __init__(
        self,
        provenance: Provenance,
        lowering: Lowering,
        calibration: Calibration,
        kernels: dict[str, FittedKernel],
        report: dict[str, Any],
        folder: Path,
    ) -> None:
        self.provenance = provenance
        self.name = provenance.name
        self.lowering = lowering
        self.calibration = calibration
        self.network_overhead_ms = calibration.constant_us / 1e3
        self.kernels = kernels
        self.kinds = tuple(sorted(kernels))
        self.report = report
        self.folder = folder
        self.extrapolated: dict[str, str] = {}
        self._sizes_told = False
        # Searches ask for the same few thousand blocks over and over.
        self._places: dict[PlacedBlock, int] = {}
        self._table: FloatArray = np.zeros((0, len(kernels) + 2))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that predictions depend on."""
        contents = (self.kernels[kind].regressor.to_bytes() for kind in sorted(self.kernels))
        parts = (self.machine, self.lowering, self.calibration)
        return digest(*map(to_json, parts), *contents)

    @property
    def machine(self) -> Machine:
        """The machine that was measured, its runtime and options."""
        return self.provenance.machine

    def kernels_us(self, kernels: Sequence[RuntimeKernel]) -> FloatArray:
        """Latency of runtime kernels alone, microseconds, shape (n,), not calibrated.

        A kernel outside the range that was measured is priced, and a `PredictorWarning` says so
        once a kernel type.

        Raises
        ------
        PredictorError
            A kernel type has no regressor here.
        """
        result = np.empty(len(kernels))
        for kind in sorted({k.type for k in kernels}):
            if kind not in self.kernels:
                raise PredictorError(
                    f"{self.folder}: no regressor for kernel {kind!r}; it has "
                    f"{', '.join(sorted(self.kernels))}. Profile a hyperspace that uses it."
                )
            rows = [i for i, k in enumerate(kernels) if k.type == kind]
            mine = [kernels[i] for i in rows]
            self._note_extrapolation(kind, mine)
            result[rows] = self.kernels[kind].regressor.predict_us(mine)
        return result

    def _note_extrapolation(self, kind: str, kernels: Sequence[RuntimeKernel]) -> None:
        fitted = self.kernels[kind]
        found = {k.key: ", ".join(why) for k in kernels if (why := fitted.outside(k))}
        if found and not any(key.startswith(f"{kind}/") for key in self.extrapolated):
            key = next(iter(found))
            warnings.warn(
                f"latency predictor {self.name}: {len(found)} {kind} kernels lie outside what was "
                f"measured, such as {key}: {found[key]}. Their latencies are extrapolated",
                PredictorWarning,
                stacklevel=4,
            )
        self.extrapolated |= found

    def chain_sums(self, chains: Sequence[Sequence[PlacedBlock]]) -> FloatArray:
        """What `Calibration` multiplies, shape (n, len(self.kinds) + 2).

        The columns are the microseconds of each type of kernels, the number of operators, and
        megabytes of INT8 weights to fetch. Raises as `chain_ms`.
        """
        blocks = list(itertools.chain.from_iterable(chains))
        # Hashing a block is what this costs: once where it is known, twice where it is new.
        new: dict[PlacedBlock, int] = {}
        known = self._places.get
        first = len(self._table)
        places = [
            at if (at := known(block)) is not None else new.setdefault(block, first + len(new))
            for block in blocks
        ]
        if new:
            self._learn(new)
        owner = np.repeat(np.arange(len(chains)), [len(chain) for chain in chains])
        columns = self._table[np.array(places, np.int64)].T
        return np.stack([np.bincount(owner, c, len(chains)) for c in columns], axis=1)

    def _learn(self, new: dict[PlacedBlock, int]) -> None:
        """Price new blocks, given with the rows of the table that follow its last."""
        blocks = list(new)
        # Blocks share kernels, and hashing them is what this costs: each is lowered, priced and
        # looked up once.
        parts: dict[RuntimeKernel, int] = {}

        def places(lowered: Iterable[RuntimeKernel]) -> list[int]:
            return [parts.setdefault(part, len(parts)) for part in lowered]

        # Where kernels do not depend on those before them, each is lowered once.
        together = self.lowering.whole_blocks or self.lowering.by_neighbours

        @cache
        def lower(kernel: Kernel) -> tuple[list[int], float]:
            lowered = [] if together else places(self.lowering.lower(kernel))
            return lowered, self.calibration.fetched_mb(kernel)

        found = [[lower(kernel) for kernel in block.kernels] for block in blocks]
        if together:
            rows = [places(self.lowering.lower_block(block)) for block in blocks]
        else:
            rows = [[i for places, _ in kernels for i in places] for kernels in found]
        owner = np.repeat(np.arange(len(blocks)), [len(row) for row in rows])
        flat = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
        nodes = np.array([self.lowering.nodes(part) for part in parts])
        us, types = self.kernels_us(list(parts)), np.array([part.type for part in parts])
        values = (*(np.where(types == kind, us, 0.0) for kind in self.kinds), nodes)
        sums = [np.bincount(owner, each[flat], len(blocks)) for each in values]
        megabytes = [sum(fetched for _, fetched in kernels) for kernels in found]
        self._places |= new
        self._table = np.concatenate([self._table, np.stack([*sums, megabytes], axis=1)])

    def chain_ms(self, chains: Sequence[Sequence[PlacedBlock]]) -> FloatArray:
        """Additive latency of lists of blocks, without a network's constant.

        Parameters
        ----------
        chains : n lists of blocks, such as those of n sub-stages

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
        scales = [c.scale_of(kind) for kind in self.kinds]
        costs = self.chain_sums(chains) * (*scales, c.node_us, c.weight_us_per_mb)
        return costs.sum(axis=1) / 1e3

    def network_ms(self, chains: Sequence[Sequence[PlacedBlock]]) -> FloatArray:
        """Latency of n whole networks given as lists of blocks, milliseconds, shape (n,).

        Raises as `chain_ms`.
        """
        return self.network_of_sum(self.chain_ms(chains))

    def network_of_sum(self, sum_ms: FloatArray) -> FloatArray:
        """Latency of n whole networks from the sums of their blocks, milliseconds, shape (n,)."""
        c = self.calibration
        sum_ms = sum_ms + self.network_overhead_ms
        # Nothing costs nothing; its logarithm would be infinite.
        logs = np.log(np.maximum(sum_ms, 1e-6) * 1e3)
        ms = np.asarray(sum_ms * np.interp(logs, np.log(c.sums_us), c.shares))
        self._note_sizes(sum_ms, ms)
        return ms

    def _note_sizes(self, sum_ms: FloatArray, ms: FloatArray) -> None:
        """Warn once of networks faster or slower than any that it was calibrated on."""
        if self._sizes_told or not np.size(sum_ms):
            return
        sums, shares = np.array(self.calibration.sums_us), np.array(self.calibration.shares)
        if len(sums) < 2:
            return
        low, high = float(np.min(sum_ms)) * 1e3, float(np.max(sum_ms)) * 1e3
        if low < sums[0] * (1 - _BEYOND) or high > sums[-1] * (1 + _BEYOND):
            self._sizes_told = True
            ends = sums[[0, -1]] * shares[[0, -1]] / 1e3
            warnings.warn(
                f"latency predictor {self.name}: networks of {np.min(ms):.3g} to "
                f"{np.max(ms):.3g} ms; it was calibrated on networks of "
                f"{ends[0]:.3g} to {ends[1]:.3g} ms. Those beyond are extrapolated",
                PredictorWarning,
                stacklevel=3,
            )

    def save(self, folder: Path) -> None:
        """Write the folder; killed at any moment it holds the old predictor or the new one.

        Raises
        ------
        FileAccessError
            The folder cannot be written.
        """
        files = {}
        for kind, fitted in sorted(self.kernels.items()):
            content = fitted.regressor.to_bytes()
            sha256 = _sha256(content)
            # Named by content, a new file never takes the place of one still in use.
            name = f"{kind}-{sha256[:8]}.npz"
            files[kind] = KernelFile(
                file=name,
                sha256=sha256,
                least=fitted.least,
                most=fitted.most,
                activations=fitted.activations,
            )
            write_atomically(folder / name, content)
        report = to_json(self.report)
        p = self.provenance
        device = Device(
            schema=SCHEMA,
            name=self.name,
            device=p.device,
            precision=p.precision,
            hyperspaces=p.hyperspaces,
            machine=p.machine,
            lowering=self.lowering,
            calibration=self.calibration,
            failures=p.failures,
            notes=p.notes,
            kernels=files,
            report_sha256=_sha256(report.encode()),
        )
        # The new report waits beside the old one until `device.yaml` speaks of it.
        write_atomically(folder / _NEW_REPORT, report)
        write_atomically(folder / DEVICE_FILE, to_yaml(device))
        _finish_saving(folder, device)


def _finish_saving(folder: Path, device: Device) -> None:
    try:
        (folder / _NEW_REPORT).replace(folder / REPORT_FILE)
        for path in set(folder.glob("*.npz")) - {folder / k.file for k in device.kernels.values()}:
            path.unlink()
    except OSError as error:
        raise FileAccessError(f"{folder}: cannot write ({error.strerror})") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def load_predictor(folder: Path | str) -> LatencyPredictor:
    """Read a predictor folder and check every file's hash.

    A predictor that failed its accuracy gate is read with a `PredictorWarning`.

    Raises
    ------
    PredictorError
        No such folder, another schema, or a missing, damaged or mismatched file; names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PredictorError(f"{folder}: no such latency predictor folder")
    try:
        device = _read_device(folder / DEVICE_FILE)
        kernels = {
            kind: FittedKernel(
                _read_regressor(folder, kind, entry), entry.least, entry.most, entry.activations
            )
            for kind, entry in device.kernels.items()
        }
        report = read_json(_report_file(folder, device.report_sha256), dict)
    except (ConfigError, FileAccessError) as error:
        raise PredictorError(f"latency predictor {error}") from error
    if device.failures:
        warnings.warn(
            f"latency predictor {device.name} did not pass its accuracy gate: "
            + "; ".join(device.failures),
            PredictorWarning,
            stacklevel=2,
        )
    provenance = Provenance(
        name=device.name,
        device=device.device,
        precision=device.precision,
        machine=device.machine,
        hyperspaces=device.hyperspaces,
        failures=device.failures,
        notes=device.notes,
    )
    return LatencyPredictor(
        provenance, device.lowering, device.calibration, kernels, report, folder
    )


def find_predictor(name: str | Path, *places: Path) -> Path:
    """Folder of a predictor: in one of the places, or in the package.

    Parameters
    ----------
    name : path of a folder, or a predictor of the package
    places : folders that a relative path may start from; default: the current one

    Raises
    ------
    PredictorError
        There is none; lists those of the package.
    """
    packed = packed_folder("latency_predictors")
    for place in (*(places or (Path(),)), packed):
        folder = place / name
        if (folder / DEVICE_FILE).is_file():
            return folder
    known = sorted(path.parent.name for path in packed.glob(f"*/{DEVICE_FILE}"))
    raise PredictorError(
        f"latency predictor {str(name)!r}: no such folder with a {DEVICE_FILE}; the package has: "
        f"{', '.join(known) or 'none'}"
    )


def _read_device(path: Path) -> Device:
    # The version first: another version's other keys would only confuse.
    content = read_yaml(path, dict)
    schema = content.get("schema")
    if schema != SCHEMA:
        raise PredictorError(
            f"{path}: latency predictor schema {schema!r}; this version reads {SCHEMA}"
        )
    try:
        return convert(content, Device, str(path))
    except PredictorError as error:
        raise PredictorError(f"{path}: {error}") from error


def _read_regressor(folder: Path, kind: str, entry: KernelFile) -> Regressor:
    path = folder / entry.file
    if Path(entry.file).name != entry.file:
        raise PredictorError(f"{folder / DEVICE_FILE}: file name {entry.file!r} leaves the folder")
    if not len(entry.least) == len(entry.most) == len(RANGED):
        raise PredictorError(
            f"{folder / DEVICE_FILE}: range of {kind!r}: expected {len(RANGED)} numbers each"
        )
    content = _read(path)
    if _sha256(content) != entry.sha256:
        raise PredictorError(f"{path}: {_MISMATCH}")
    return Regressor.from_bytes(content, kind, str(path))


def _report_file(folder: Path, sha256: str) -> Path:
    """The report that belongs to `device.yaml`; it may still wait for its name after a kill."""
    for name in (REPORT_FILE, _NEW_REPORT):
        path = folder / name
        if path.exists() and _sha256(_read(path)) == sha256:
            return path
    path = folder / REPORT_FILE
    _read(path)
    raise PredictorError(f"{path}: {_MISMATCH}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PredictorError(f"{path}: cannot read ({error.strerror})") from error
