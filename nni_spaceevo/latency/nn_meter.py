"""nn-Meter's kernels, and an nn-Meter predictor folder used as a device.

nn-Meter keeps one scikit-learn pickle a kernel and prices a kernel that it has none for at 0 ms.
Here such a kernel is an error, and nothing is unpickled before the user says that the files are
trusted. Nothing of nn-Meter itself is needed to price with its folders.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError, FileAccessError, PredictorError, PredictorWarning
from ..files import digest, read_json, read_yaml
from ..hyperspace import Kernel, PlacedBlock
from .features import FloatArray

RULES_FILE = "fusion_rules.json"
META_FILE = "meta.yaml"
_NOT_TRUSTED = (
    "is an nn-Meter predictor, and those are Python pickles. Reading a pickle runs any code that "
    "someone put into the file, with all your rights, before a single number is seen. Only if you "
    "know where these files come from and trust whoever wrote them, say --trust-pickle. "
    "Nothing was read"
)
# nn-Meter counts Clip as "relu".
_SAID_AS = {"relu": "relu", "relu6": "relu", "hswish": "hswish"}


@dataclass(frozen=True, slots=True)
class MeterKernel:
    """A kernel as nn-Meter prices it.

    Attributes
    ----------
    predictor : name of the predictor that prices it, such as "conv-bn-relu"
    features : what that predictor gets, in nn-Meter's order
    """

    predictor: str
    features: tuple[float, ...]


@dataclass(frozen=True)
class MeterLowering:
    """How nn-Meter divides our kernels under a folder's fusion rules.

    Attributes
    ----------
    fused : pairs such as ("conv", "relu") of which the second costs nothing after the first
    said_as : the predictor that prices an activation which is not fused
    """

    fused: frozenset[tuple[str, str]]
    said_as: dict[str, str]

    @classmethod
    def of(cls, rules: dict[str, Any]) -> MeterLowering:
        """From the content of a `fusion_rules.json`."""
        names = (
            name.split("_")[1:]
            for name, rule in rules.items()
            if name.startswith("BF_") and isinstance(rule, dict) and rule.get("obey")
        )
        return cls(frozenset((n[0], n[1]) for n in names if len(n) == 2), _SAID_AS)

    def lower(self, kernel: Kernel) -> tuple[MeterKernel, ...]:
        """Kernels that nn-Meter makes of one of ours.

        BatchNorm counts as folded. An activation that nn-Meter does not know keeps its own name,
        for which no folder has a predictor.
        """
        kind, activation = meter_type(kernel), kernel.activation
        said = self.said_as.get(activation, activation)
        fused = activation != "none" and (kind, said) in self.fused
        main = MeterKernel(_predictor_of(kind, fused), meter_features(kernel))
        if activation == "none" or fused:
            return (main,)
        size = (float(kernel.hw_out), float(kernel.cout))
        return main, MeterKernel(said, size)


def meter_type(kernel: Kernel) -> str:
    """What nn-Meter calls a kernel: "conv", "dwconv", "add", "se", "gap" or "fc"."""
    if kernel.op == "conv" and kernel.cin == 1:
        # It takes a convolution with as many groups as input channels for a depthwise one.
        return "dwconv"
    return {"pool": "gap", "linear": "fc"}.get(kernel.op, kernel.op)


def _predictor_of(kind: str, activated: bool) -> str:
    # One predictor serves all kernels that start with a convolution, whatever is fused to it.
    names = {"conv": "conv-bn-relu", "dwconv": "dwconv-bn-relu", "gap": "global-avgpool"}
    return "addrelu" if kind == "add" and activated else names.get(kind, kind)


def meter_features(kernel: Kernel) -> tuple[float, ...]:
    """Features of a kernel in nn-Meter's order: sizes in pixels, mega-MACs, mega-weights."""
    k, size, cin, cout = kernel, kernel.hw, kernel.cin, kernel.cout
    match meter_type(kernel):
        case "conv" | "dwconv" as kind:
            fan_in = k.kernel_size**2 * (1 if kind == "dwconv" else cin)
            weights = cout * (fan_in + 1)
            # It divides without rounding up.
            operations = 2 * size / k.stride * size / k.stride * weights
            return (size, cin, cout, k.kernel_size, k.stride, operations / 2e6, weights / 1e6)
        case "fc":
            operations = (2 * cin + 1) * cout
            return (cin, cout, operations / 2e6, operations / 1e6)
        case "gap":
            # It always takes the input's height for 1.
            return (1, cin)
        case "add":
            return (size, cin, cin)
    return (size, cin)


class Model(Protocol):
    """What a predictor's pickle holds: a fitted scikit-learn regressor."""

    def predict(self, rows: FloatArray) -> FloatArray:
        """Milliseconds, shape (n,), of rows of features, shape (n, features)."""
        ...


class NnMeterLatency:
    """Latency of networks from nn-Meter's kernel predictors; it prices what ours prices.

    Parameters
    ----------
    name : the predictor's name
    fingerprint : hash of all that predictions depend on
    lowering : how nn-Meter divides kernels
    models : predictors by name
    folder : where they were read from, for messages

    Attributes
    ----------
    network_overhead_ms : 0; nn-Meter knows no cost of a network beyond its kernels
    """

    network_overhead_ms = 0.0

    def __init__(
        self,
        name: str,
        fingerprint: str,
        lowering: MeterLowering,
        models: dict[str, Model],
        folder: Path,
    ) -> None:
        self.name, self.fingerprint = name, fingerprint
        self.lowering, self.models, self.folder = lowering, models, folder
        self._blocks: dict[PlacedBlock, float] = {}

    def chain_ms(self, chains: Sequence[Sequence[PlacedBlock]]) -> FloatArray:
        """Latency of n lists of blocks, milliseconds, shape (n,); an empty list costs 0.

        Raises
        ------
        PredictorError
            A kernel that this folder has no predictor for; it never costs 0.
        """
        unknown = {b for chain in chains for b in chain} - self._blocks.keys()
        if unknown:
            self._learn(sorted(unknown, key=repr))
        return np.array([sum(self._blocks[b] for b in chain) for chain in chains], np.float64)

    def network_ms(self, chains: Sequence[Sequence[PlacedBlock]]) -> FloatArray:
        """Latency of n whole networks, milliseconds, shape (n,); raises as `chain_ms`."""
        return self.network_of_sum(self.chain_ms(chains))

    def network_of_sum(self, sum_ms: FloatArray) -> FloatArray:
        """Latency of n whole networks from the sums of their blocks: the same."""
        return sum_ms + self.network_overhead_ms

    def _learn(self, blocks: Sequence[PlacedBlock]) -> None:
        lowered = [[m for k in block.kernels for m in self._lower(k)] for block in blocks]
        prices = self._kernels_ms({m for kernels in lowered for m in kernels})
        for block, kernels in zip(blocks, lowered, strict=True):
            self._blocks[block] = sum(prices[m] for m in kernels)

    def _lower(self, kernel: Kernel) -> tuple[MeterKernel, ...]:
        lowered = self.lowering.lower(kernel)
        for part in lowered:
            if part.predictor not in self.models:
                raise PredictorError(
                    f"{self.folder}: no predictor for kernel {part.predictor!r}, which "
                    f"{kernel.op!r} with activation {kernel.activation!r} needs; it has "
                    f"{', '.join(sorted(self.models))}"
                )
        return lowered

    def _kernels_ms(self, kernels: Iterable[MeterKernel]) -> dict[MeterKernel, float]:
        by_name: dict[str, list[MeterKernel]] = {}
        for kernel in kernels:
            by_name.setdefault(kernel.predictor, []).append(kernel)
        prices: dict[MeterKernel, float] = {}
        for name, mine in by_name.items():
            found = np.asarray(self.models[name].predict(np.array([k.features for k in mine])))
            if not (np.isfinite(found).all() and (found >= 0).all()):
                raise PredictorError(
                    f"{self.folder / f'{name}.pkl'}: predicts latencies that are negative or "
                    "not finite"
                )
            prices |= dict(zip(mine, found.astype(float).tolist(), strict=True))
        return prices


def load_nn_meter(path: Path | str, trust_pickle: bool) -> NnMeterLatency:
    """Read an nn-Meter predictor folder as a latency model.

    Parameters
    ----------
    path : the folder, or the `meta.yaml` that it is registered with
    trust_pickle : whether the user said that the pickles may be read, which runs what is in them

    Raises
    ------
    PredictorError
        Not such a folder, `trust_pickle` was not said, or a pickle that the installed scikit-learn
        cannot read; names the file.
    """
    try:
        folder, meta = _locate(Path(path))
        rules = read_json(folder / RULES_FILE, dict)
    except (ConfigError, FileAccessError) as error:
        raise PredictorError(f"nn-Meter predictor {error}") from error
    files = {p.stem: p for p in sorted(folder.glob("*.pkl"))}
    missing = [n for n in meta.get("kernel_predictors") or () if n not in files]
    if missing or not files:
        raise PredictorError(f"{folder}: no {missing[0] if missing else 'kernel'}.pkl")
    if not trust_pickle:
        raise PredictorError(f"{folder}: {_NOT_TRUSTED}")
    contents = {name: _bytes(file) for name, file in files.items()}
    models = {name: _unpickle(contents[name], file) for name, file in files.items()}
    parts = (part for name in files for part in (name, contents[name]))
    fingerprint = digest("nn-meter", _bytes(folder / RULES_FILE), *parts)
    name = str(meta.get("name") or folder.name)
    return NnMeterLatency(name, fingerprint, MeterLowering.of(rules), models, folder)


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of predictors and the content of its `meta.yaml`, empty where it has none."""
    if path.is_dir():
        meta = path / META_FILE
        return path, read_yaml(meta, dict) if meta.is_file() else {}
    content = read_yaml(path, dict)
    location = content.get("package_location")
    if not isinstance(location, str):
        raise PredictorError(f"{path}: expected package_location, the folder of the predictors")
    folder = path.parent / location
    if not folder.is_dir():
        raise PredictorError(f"{path}: package_location {folder}: no such folder")
    return folder, content


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PredictorError(f"{path}: cannot read ({error.strerror})") from error


def _unpickle(content: bytes, path: Path) -> Model:
    """The regressor in a file that the user has said to trust."""
    import pickle

    import sklearn

    written = _written_by(content)
    versions = f"written by scikit-learn {written or 'of unknown version'}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Only behind `trust_pickle`, which the user has to say.
            model = pickle.loads(content)  # noqa: S301
            # Many that load under another version fail only when they predict.
            _check_predicts(model)
    except Exception as error:  # What a pickle raises is up to the file.
        raise PredictorError(
            f"{path}: cannot be used with scikit-learn {sklearn.__version__}, {versions} "
            f"({type(error).__name__}: {error}). nn-Meter's pickles work only under the version "
            "that wrote them"
        ) from error
    if written and written != sklearn.__version__:
        warnings.warn(
            f"{path}: {versions}, read by {sklearn.__version__}; its figures may be off",
            PredictorWarning,
            stacklevel=3,
        )
    return model


def _check_predicts(model: Any) -> None:
    if hasattr(model, "n_jobs"):
        # Threads add their trees up in the order in which they end.
        model.n_jobs = 1
    model.predict(np.ones((1, model.n_features_in_)))


def _written_by(content: bytes) -> str | None:
    """scikit-learn's version in a pickle, found without running it."""
    texts: list[str] = []
    try:
        for _, value, _ in pickletools.genops(content):
            if isinstance(value, str):
                if texts and texts[-1] == "_sklearn_version":
                    return value
                texts.append(value)
    except Exception:  # Damage is reported where the file is read.
        pass
    return None
