"""Devices that can be profiled: runtimes that time kernels and whole networks.

A device is found by name; `register_device` adds a user's own. Importing this imports no runtime.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from ...errors import ConfigError, DeviceError
from ...own import import_own
from .device import Device, Timed
from .file_device import FileDevice

__all__ = [
    "Device",
    "FileDevice",
    "Timed",
    "device_names",
    "get_device",
    "register_device",
    "runtime_module",
]

# Where each built-in device is, what to give its constructor, and what must be installed for it.
_BUILT_IN: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "ort-x86-int8": ("onnx_runtime", "OnnxRuntimeDevice", ("int8",), ""),
    "ort-x86-fp32": ("onnx_runtime", "OnnxRuntimeDevice", ("float32",), ""),
    "openvino-x86-int8": ("openvino", "OpenVinoDevice", (), "openvino"),
    "litert-x86-int8": ("litert", "LiteRTDevice", (), "litert"),
}
_OWN: dict[str, Callable[[], Device]] = {}


def device_names() -> tuple[str, ...]:
    """Names that `get_device` takes, but for `command:…` and `adb:…`."""
    return (*_BUILT_IN, *_OWN)


def register_device(name: str, make: Callable[[], Device]) -> None:
    """Add a device.

    Parameters
    ----------
    name : how it is asked for
    make : makes it, only when it is asked for

    Raises
    ------
    ConfigError
        The name is taken.
    """
    if name in device_names() or ":" in name:
        raise ConfigError(f"device {name!r}: the name is taken; known: {', '.join(device_names())}")
    _OWN[name] = make


def get_device(name: str) -> Device:
    """The device of a name, `command:<shell command>`, `adb:<binary>` or `module:Class`.

    Raises
    ------
    ConfigError
        No such device; the message lists those that there are.
    DeviceError
        Its runtime is not installed; the message says what to install.
    """
    kind, colon, rest = name.partition(":")
    if name in _OWN:
        return _OWN[name]()
    if colon and kind in ("command", "adb"):
        from .adb import AdbDevice
        from .command import CommandDevice

        return {"command": CommandDevice, "adb": AdbDevice}[kind](rest)
    if colon:
        return _imported(name)
    if name not in _BUILT_IN:
        raise ConfigError(
            f"device {name!r}: expected one of {', '.join(device_names())}, command:…, adb:… or "
            "<module>:<class>"
        )
    module, attribute, arguments, extra = _BUILT_IN[name]
    found = runtime_module(f"{__name__}.{module}", f"device {name!r}", extra)
    return getattr(found, attribute)(*arguments)


def runtime_module(module: str, wanted_by: str, extra: str) -> ModuleType:
    """A module that imports a runtime.

    Parameters
    ----------
    module : its name
    wanted_by : what needs it, for the message
    extra : what of this package installs the runtime

    Raises
    ------
    DeviceError
        The runtime is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"{wanted_by} needs {error.name}, which is not installed; "
            f"pip install 'nni_spaceevo[{extra}]'"
        ) from error


def _imported(name: str) -> Device:
    """An own device class by import path."""
    try:
        made = import_own(name, Path(), "device")()
    except TypeError as error:
        raise ConfigError(
            f"device {name!r}: expected a class without arguments ({error})"
        ) from error
    if not isinstance(made, Device):
        raise ConfigError(f"device {name!r}: not a subclass of Device")
    return made
