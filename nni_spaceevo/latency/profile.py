"""Profiling a device: sample kernels, measure, fit, hold out, check on whole subnets, store.

Everything measured goes to `<output>/.profile/`, one file a machine; a killed run continues from
it. The folder is not needed once the predictor is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..files import Record, digest, exclusive, to_json
from ..hyperspace import Hyperspace
from .features import FloatArray
from .fit import fit_calibration, fit_regressor
from .graph import subnet_model
from .journal import Journal
from .kernel_graph import copies_of
from .lowering import RuntimeKernel
from .machine import Machine
from .measure import Job, Noise, idle_job, kernel_job, kernel_key, measure_all
from .predictor import Calibration, LatencyPredictor, load_predictor
from .regressor import Regressor
from .report import error_statistics, kendall_tau
from .sampling import Network, calibration_networks, held_out_networks, sample_kernels
from .session import onnxruntime_machine

# Part of the journal's name: measurements taken in another way are not mixed with these.
_METHOD = 1
_HELD_OUT_SHARE = 0.2
# No calibration yet: the sum of the kernels as they are.
_RAW = Calibration(scale=1.0, node_us=0.0, weight_us_per_mb=0.0, constant_us=0.0)


class ProfileOptions(Record, frozen=True):
    """How thoroughly to profile.

    Attributes
    ----------
    seed : of everything drawn
    kernels_per_type : configurations measured of each kernel type
    rounds : visits in quiet moments to each model, spread over the session
    repeats : runs in a visit
    calibration_networks : subnets measured whole to fit the calibration
    validation_networks : subnets of other spaces measured whole, only for the report
    """

    seed: int = 0
    kernels_per_type: int = 300
    rounds: int = 6
    repeats: int = 20
    calibration_networks: int = 20
    validation_networks: int = 20

    def __post_init__(self) -> None:
        least = {
            "seed": 0,
            "kernels_per_type": 8,
            "rounds": 1,
            "repeats": 1,
            "calibration_networks": 4,
            "validation_networks": 1,
        }
        for key, minimum in least.items():
            if getattr(self, key) < minimum:
                raise ConfigError(
                    f"profile option {key}: {getattr(self, key)}; expected at least {minimum}"
                )


@dataclass(frozen=True)
class _Plan:
    kernels: list[RuntimeKernel]
    calibration: list[Network]
    validation: list[Network]

    @classmethod
    def of(cls, hyperspace: Hyperspace, options: ProfileOptions) -> _Plan:
        streams = np.random.default_rng(options.seed).spawn(3)
        calibration = calibration_networks(hyperspace, streams[1], options.calibration_networks)
        validation = held_out_networks(
            hyperspace, streams[2], options.validation_networks, calibration
        )
        kernels = sample_kernels(hyperspace, streams[0], options.kernels_per_type)
        return cls(kernels, calibration, validation)

    def jobs(self) -> list[Job]:
        """All models, each once."""
        jobs = [idle_job(copies) for copies in sorted({copies_of(k) for k in self.kernels})]
        jobs += [kernel_job(k, copies_of(k)) for k in self.kernels]
        jobs += [_network_job(n) for n in (*self.calibration, *self.validation)]
        return list({job.key: job for job in jobs}.values())

    def kernel_us(self, least_us: dict[str, float]) -> FloatArray:
        """Microseconds of each kernel: its copies' time less the idle call's, per copy."""
        pairs = [(k, copies_of(k)) for k in self.kernels]
        us = [(least_us[kernel_key(k, n)] - least_us[f"idle{n}"]) / n for k, n in pairs]
        # The smallest kernels may drown in the call's cost; a hundredth of a microsecond is free.
        return np.maximum(us, 0.01)


def _network_job(n: Network) -> Job:
    def build() -> Any:
        return subnet_model(n.blocks, n.code.resolution, np.random.default_rng(0))

    return Job(n.key, build, optimize=True, keep=True)


def profile_device(
    hyperspace: Hyperspace,
    output: Path,
    options: ProfileOptions | None = None,
    progress: bool = True,
) -> LatencyPredictor:
    """Measure this machine's ONNX Runtime INT8 on a hyperspace and write a predictor folder.

    Parameters
    ----------
    hyperspace : its kernels and subnets are measured
    output : the predictor folder; its name becomes the predictor's
    options : how thoroughly; the default takes 1 to 3 minutes
    progress : show a progress bar

    Raises
    ------
    DeviceError
        The machine is too noisy to measure (with figures), or the runtime refuses a model.
    LockedError
        Another process is profiling into the same folder.
    FileAccessError
        The folder cannot be written.
    """
    options = options or ProfileOptions()
    output = Path(output)
    machine = onnxruntime_machine()
    journal_name = f"{digest(str(_METHOD), to_json(machine))}.jsonl"
    with exclusive(output / ".profile" / "measurements"):
        plan = _Plan.of(hyperspace, options)
        journal = Journal(output / ".profile" / journal_name)
        noise = measure_all(
            plan.jobs(), journal, options.rounds, options.repeats, options.seed, progress
        )
        _fit(hyperspace, output, machine, plan, noise, options.seed).save(output)
    return load_predictor(output)


def _fit(
    hyperspace: Hyperspace, output: Path, machine: Machine, plan: _Plan, noise: Noise, seed: int
) -> LatencyPredictor:
    """Everything after measuring; the same measurements give the same predictor."""
    least_us = noise.least_us()
    regressors, kernel_report = _fit_kernels(plan.kernels, plan.kernel_us(least_us), seed)

    def predictor(calibration: Calibration, report: dict[str, Any]) -> LatencyPredictor:
        covered = {hyperspace.name: hyperspace.fingerprint}
        name = output.resolve().name
        return LatencyPredictor(name, output, machine, covered, calibration, regressors, report)

    sums = predictor(_RAW, {}).chain_sums([n.kernels for n in plan.calibration])
    measured_us = np.array([least_us[n.key] for n in plan.calibration])
    calibrated = predictor(fit_calibration(sums, measured_us), {})
    report = {
        "kernels": kernel_report,
        "networks": _network_report(calibrated, plan.validation, least_us),
        "calibration_networks": _network_report(calibrated, plan.calibration, least_us),
        "noise": noise.report(),
        "kernels_measured": len(plan.kernels),
        "seconds": round(sum(s.seconds for group in noise.slots.values() for s in group), 3),
    }
    return predictor(calibrated.calibration, report)


def _fit_kernels(
    kernels: Sequence[RuntimeKernel], us: FloatArray, seed: int
) -> tuple[dict[str, Regressor], dict[str, dict[str, float | int]]]:
    """Regressors fitted to all kernels, and errors on a fifth when fitted to the rest."""
    regressors, report = {}, {}
    for kind in sorted({k.type for k in kernels}):
        mine = np.array([i for i, k in enumerate(kernels) if k.type == kind])
        order = np.random.default_rng([seed, len(mine)]).permutation(mine)
        held, rest = np.split(order, [int(len(mine) * _HELD_OUT_SHARE)])
        probe = fit_regressor(kind, [kernels[i] for i in rest], us[rest], seed)
        report[kind] = error_statistics(probe.predict_us([kernels[i] for i in held]), us[held])
        regressors[kind] = fit_regressor(kind, [kernels[i] for i in mine], us[mine], seed)
    return regressors, report


def _network_report(
    predictor: LatencyPredictor, networks: Sequence[Network], least_us: dict[str, float]
) -> dict[str, float | int]:
    measured = np.array([least_us[n.key] for n in networks])
    predicted = 1e3 * predictor.network_ms([n.kernels for n in networks])
    report = error_statistics(predicted, measured)
    if len(networks) > 1:
        report["kendall_tau"] = kendall_tau(predicted, measured)
    return report | {
        "least_ms": float(measured.min()) / 1e3,
        "most_ms": float(measured.max()) / 1e3,
    }
