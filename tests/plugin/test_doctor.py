from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from nni_spaceevo.latency import machine
from nni_spaceevo.plugin import doctor, registration
from nni_spaceevo.plugin.doctor import Finding

_XEON = "model name\t: Test CPU\nflags\t\t: fpu sse4_2 {flags}\nbugs\t\t:\n"


@pytest.fixture(autouse=True)
def own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))


def _finding(name: str) -> Finding:
    (found,) = [f for f in doctor.diagnose() if f.name == name]
    return found


def test_everything_is_looked_at() -> None:
    names = [f.name for f in doctor.diagnose()]
    for name in ("python", *doctor.PACKAGES, "cpu", "nnictl", "python3", "tuner SpaceEvo"):
        assert name in names
    assert "all network interfaces, without login" in _finding("NNI's port").detail


def test_installed_versions_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _finding("torch").ok
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "nn-meter":
            raise importlib.metadata.PackageNotFoundError(name)
        return "99.0" if name == "setuptools" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert _finding("nni").ok
    assert not _finding("setuptools").ok
    assert _finding("setuptools").remedy == "pip install 'setuptools<82'"
    assert "not installed" in _finding("nn-meter").detail


@pytest.mark.parametrize(
    ("flags", "ok", "text"),
    [
        ("avx2 avx512_vnni", True, "INT8 instructions (VNNI)"),
        ("avx2 avx_vnni", True, "INT8 instructions (VNNI)"),
        ("avx2", True, "AVX2 without VNNI"),
        ("", False, "neither VNNI nor AVX2"),
    ],
)
def test_int8_instructions_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, flags: str, ok: bool, text: str
) -> None:
    cpuinfo = {"/proc/cpuinfo": _XEON.format(flags=flags)}
    monkeypatch.setattr(machine, "_read", lambda path: cpuinfo.get(path, ""))
    found = _finding("cpu")
    assert found.ok is ok
    assert found.detail == f"Test CPU: {text}" or text in found.detail
    assert bool(found.remedy) is ("vnni" not in flags)


def test_a_machine_without_cpuinfo_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: "")
    assert not _finding("cpu").ok


def test_programs_must_be_this_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert not _finding("nnictl").ok
    assert "activate" in _finding("python3").remedy
    assert _finding("chromium").ok
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert _finding("python3").ok


def test_the_tuners_are_looked_up(tmp_path: Path) -> None:
    for name in ("tuner SpaceEvo", "tuner SpaceEvoDistill", "tuner SpaceEvoSubnets"):
        assert not _finding(name).ok
        assert _finding(name).remedy == "spaceevo register"
    registration.register()
    for name in ("tuner SpaceEvo", "tuner SpaceEvoDistill", "tuner SpaceEvoSubnets"):
        assert _finding(name).ok


def test_findings_as_text() -> None:
    text = doctor.show([Finding("one", True, "is there"), Finding("two", False, "no", "buy it")])
    assert text.splitlines() == [
        "ok one  is there",
        "NO two  no",
        "        -> buy it",
        "missing: two",
    ]
    assert doctor.show([Finding("one", True, "is there")]).endswith("nothing is missing")


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from nni_spaceevo.plugin import doctor; doctor.diagnose(); "
        "assert not {'torch', 'onnxruntime'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
