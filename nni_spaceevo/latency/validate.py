"""Checking a predictor on the machine at hand, which need not be the one that it was fitted on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DeviceError
from ..hyperspace import Hyperspace
from .devices.device import Device
from .journal import Journal
from .machine import Machine
from .measure import measure_all, measuring, network_job
from .predictor import LatencyPredictor
from .report import network_statistics
from .sampling import random_networks

# Times of the reference kernel that differ by less are of the same clock.
_SAME_CLOCK = 0.02


def validate_predictor(
    predictor: LatencyPredictor,
    device: Device,
    hyperspace: Hyperspace,
    networks: int = 20,
    rounds: int = 5,
    seed: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure random subnets on a device and hold a predictor's figures against them.

    Parameters
    ----------
    predictor : what is checked
    device : where the subnets run
    hyperspace : where the subnets come from; not those of the predictor's own validation
    networks, rounds : how many subnets, and quiet visits to each
    seed : of the subnets
    progress : show a progress bar

    Returns
    -------
    `report.network_statistics`, and as "differences" how this machine differs from the
    predictor's, one sentence each.

    Raises
    ------
    DeviceError
        The device has another precision than the predictor, or is too noisy.
    LockedError
        Another process measures where the device does.
    """
    if device.precision != predictor.provenance.precision:
        raise DeviceError(
            f"{device.name} runs {device.precision}; predictor {predictor.name} is for "
            f"{predictor.provenance.precision}"
        )
    if networks < 1 or rounds < 1:
        raise ConfigError(
            f"validate: expected at least one network and one round, given {networks} and {rounds}"
        )
    chosen = random_networks(hyperspace, np.random.default_rng([seed, 7]), networks, [])
    jobs = [network_job(device, n) for n in chosen]
    with measuring(device), tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "validation.jsonl")
        noise = measure_all(device, jobs, journal, rounds, 20, seed, progress)
    measured = noise.network_us(chosen) / 1e3
    predicted = predictor.network_ms([n.placed for n in chosen])
    differences = machine_differences(predictor.machine, device.machine())
    differences += clock_differences(predictor.report, noise.best_reference_us)
    return network_statistics(predicted, measured) | {
        "measured_over_predicted": float(np.median(measured / predicted)),
        "differences": differences,
    }


def clock_differences(report: dict[str, Any], reference_us: float) -> list[str]:
    """Whether a kernel that stays in the first cache takes another time than when profiled."""
    before = report.get("noise", {}).get("reference_us")
    if not before or abs(reference_us / before - 1) < _SAME_CLOCK:
        return []
    return [
        f"the reference kernel takes {reference_us / before:.2f} times as long here as when the "
        "predictor was made: another clock, or a busier host"
    ]


def machine_differences(fitted: Machine, here: Machine) -> list[str]:
    """How a machine differs from the one that a predictor was fitted on, one sentence each."""
    found = []
    lacking = [flag for flag in fitted.flags if flag not in here.flags]
    if lacking:
        found.append(f"this CPU lacks {', '.join(lacking)}, which the predictor's has")
    elif fitted.flags != here.flags:
        more = [flag for flag in here.flags if flag not in fitted.flags]
        found.append(f"this CPU has {', '.join(more)}, which the predictor's lacks")
    for what in ("cpu", "runtime", "governor", "threads"):
        before, now = getattr(fitted, what), getattr(here, what)
        if before != now:
            found.append(f"{what}: here {now}, predictor fitted on {before}")
    return found


def format_validation(name: str, report: dict[str, Any]) -> str:
    """The result of `validate_predictor` as a few lines of text."""
    ratio = report["measured_over_predicted"]
    lines = [
        f"{name} on this machine: {report['count']} subnets of {report['least_ms']:.3f} to "
        f"{report['most_ms']:.3f} ms",
        f"measured / predicted: {ratio:.2f} in the median; {report['within_5']:.0f} % within 5 %, "
        f"{report['within_10']:.0f} % within 10 %, Kendall tau {report['kendall_tau']:.3f}",
    ]
    return "\n".join(lines + [f"note: {text}" for text in report["differences"]])
