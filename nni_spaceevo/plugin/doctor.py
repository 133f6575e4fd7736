"""What this machine lacks for a search, and what a user should know about it."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from ..latency.machine import cpu_description, has_vnni
from . import registration

PACKAGES = (
    "nni",
    "nn-meter",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "onnxruntime",
    "setuptools",
)
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name : what
    ok : whether a search can run with it
    detail : what was found
    remedy : what to do, or to know; empty where there is nothing
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Look at everything; imports neither torch nor the packages it reports on."""
    return [
        _python(),
        *_packages(),
        _cpu(),
        *_programs(),
        *_tuners(),
        _browser(),
        _port(),
    ]


def show(findings: Iterable[Finding]) -> str:
    """The findings as lines for a terminal."""
    rows = list(findings)
    width = max(len(f.name) for f in rows)
    lines = []
    for finding in rows:
        lines.append(f"{'ok' if finding.ok else 'NO':<3}{finding.name:<{width}}  {finding.detail}")
        if finding.remedy:
            lines.append(f"{'':<{width + 3}}  -> {finding.remedy}")
    missing = [f.name for f in rows if not f.ok]
    lines.append(f"missing: {', '.join(missing)}" if missing else "nothing is missing")
    return "\n".join(lines)


def _python() -> Finding:
    wanted = importlib.metadata.metadata("nni_spaceevo")["Requires-Python"]
    ok = sys.version_info >= tuple(map(int, re.findall(r"\d+", wanted)))
    detail = f"{platform.python_version()} at {sys.executable}"
    return Finding("python", ok, detail, "" if ok else f"install Python {wanted}")


def _packages() -> list[Finding]:
    """Installed versions against the pins that the package itself declares."""
    required = importlib.metadata.requires("nni_spaceevo") or []
    pins = {r.name.lower(): r for r in map(Requirement, required) if r.marker is None}
    findings = []
    for name in PACKAGES:
        wanted = str(pins[name].specifier)
        remedy = f"pip install '{name}{wanted}'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, False, f"not installed; needs {wanted}", remedy))
            continue
        ok = pins[name].specifier.contains(Version(version), prereleases=True)
        detail = f"{version}, {'as' if ok else 'not as'} required ({wanted})"
        findings.append(Finding(name, ok, detail, "" if ok else remedy))
    return findings


def _cpu() -> Finding:
    name, flags = cpu_description()
    if has_vnni():
        return Finding("cpu", True, f"{name}: INT8 instructions (VNNI)")
    if "avx2" in flags:
        # Everything runs; only its INT8 speed is not that of the devices SpaceEvo is made for.
        return Finding(
            "cpu",
            True,
            f"{name}: AVX2 without VNNI",
            "INT8 runs and is searched for, but is not much faster than FP32 on this CPU",
        )
    return Finding(
        "cpu",
        False,
        f"{name}: neither VNNI nor AVX2 found",
        "measure INT8 latency on an x86 CPU with AVX2, or name another device's predictor",
    )


def _programs() -> list[Finding]:
    """The programs that NNI starts from PATH."""
    here = Path(sys.executable).parent
    findings = []
    for program in ("nnictl", "python3"):
        found = shutil.which(program)
        ok = found is not None and Path(found).parent == here
        findings.append(
            Finding(
                program,
                ok,
                found or "not on PATH",
                "" if ok else f"source {here}/activate, so that NNI's trials use this environment",
            )
        )
    return findings


def _tuners() -> list[Finding]:
    findings = []
    for name, found in registration.registered_classes().items():
        ok = found == registration.tuners()[name]
        detail = f"registered with NNI as {found}" if found else "not registered with NNI"
        findings.append(Finding(f"tuner {name}", ok, detail, "" if ok else "spaceevo register"))
    return findings


def _browser() -> Finding:
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    remedy = "" if found else "only the test of the web page needs it: apt-get install chromium"
    return Finding("chromium", True, found or "not installed (optional)", remedy)


def _port() -> Finding:
    return Finding(
        "NNI's port",
        True,
        "the web UI listens on all network interfaces, without login",
        "who reaches it can run commands as you: keep it behind a firewall, or on a machine "
        "that only you reach",
    )
