"""Finding devices by name, and what a device gets for nothing from its base class."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from nni_spaceevo.errors import ConfigError, DeviceError
from nni_spaceevo.latency import devices
from nni_spaceevo.latency.devices import Device, device_names, get_device, register_device
from nni_spaceevo.latency.devices.device import probes
from nni_spaceevo.latency.lowering import ACTIVATED, ACTIVATIONS, PLAIN, RuntimeKernel

from ..conftest import MACHINE


class Silent(Device):
    """A device that tells nothing about its operators."""

    name = "silent"

    def machine(self):
        return MACHINE

    def kernel(self, kernel, copies):
        raise DeviceError("nothing runs here")

    idle = network = kernel


class Telling(Silent):
    """One that folds ReLU, starts an operator for swish, and another one for wide sums."""

    def operators(self, kernel):
        main = () if kernel.type == "swish" else (f"{kernel.type}:int8",)
        own = ("swish:float32",) if "swish" in (kernel.type, kernel.activation) else ()
        moved = ("reorder:move",) if kernel.type == "add" and kernel.cin % 16 else ()
        return main + own + moved


# ---- by name -------------------------------------------------------------------------------------


def test_importing_the_devices_imports_no_runtime():
    code = (
        "import sys, nni_spaceevo.latency.devices; "
        "print({'onnxruntime', 'openvino', 'ai_edge_litert'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_built_in_devices_have_the_name_that_they_are_asked_by():
    assert get_device("ort-x86-int8").name == "ort-x86-int8"
    assert get_device("ort-x86-fp32").precision == "float32"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'nokia'.*ort-x86-int8.*command:…, adb:…"):
        get_device("nokia")


def test_a_registered_device_is_made_when_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(devices, "_OWN", {})
    register_device("silent", Silent)
    assert isinstance(get_device("silent"), Silent)
    assert "silent" in device_names()
    with pytest.raises(ConfigError, match=r"'silent': the name is taken; known: .*ort-x86-int8"):
        register_device("silent", Silent)
    with pytest.raises(ConfigError, match="taken"):
        register_device("ort-x86-int8", Silent)


def test_a_missing_runtime_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "nni_spaceevo.latency.devices.openvino", raising=False)
    with pytest.raises(
        DeviceError, match=r"needs openvino.*pip install 'nni_spaceevo\[openvino\]'"
    ):
        get_device("openvino-x86-int8")


def test_an_own_class_is_found_by_its_import_path(monkeypatch):
    module = types.ModuleType("my_devices")
    module.Silent, module.NoDevice, module.Picky = Silent, dict, type("Picky", (Silent,), {})
    module.Picky.__init__ = lambda self, needed: None
    monkeypatch.setitem(sys.modules, "my_devices", module)
    assert isinstance(get_device("my_devices:Silent"), Silent)
    with pytest.raises(ConfigError, match="not a subclass of Device"):
        get_device("my_devices:NoDevice")
    for name in ("my_devices:Missing", "no_such_module:Silent", "my_devices:Picky"):
        with pytest.raises(ConfigError, match="expected "):
            get_device(name)


# ---- lowerings -----------------------------------------------------------------------------------


def test_every_unit_of_networks_is_probed_once():
    units = [probe.unit for probe in probes(64)]
    assert len(units) == len(set(units)) == len(ACTIVATED) * (1 + len(ACTIVATIONS)) + len(PLAIN)


def test_a_device_that_tells_nothing_measures_activations_within_kernels():
    lowering = Silent().lowering()
    assert set(lowering.operators) == {probe.unit for probe in probes(64)}
    assert not lowering.own_kernel
    assert not lowering.free
    assert Silent().contained(RuntimeKernel("add", 7, 8, 8)) is None


def test_a_device_that_tells_its_operators_gets_a_lowering():
    lowering = Telling().lowering()
    assert lowering.operators["swish"] == ("swish:float32",)
    assert lowering.own_kernel["conv"] == ("swish",)
    assert set(lowering.free["add"]) == {"relu", "relu6"}
    assert lowering.operators["conv+hswish"] == ("conv:int8",)
    assert lowering.unaligned["add"] == ("add:int8", "reorder:move")
    assert "conv" not in lowering.unaligned
