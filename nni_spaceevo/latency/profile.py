"""Profiling a device: sample kernels, measure, fit, hold out, check on whole subnets, store.

Everything measured goes to `<output>/.profile/`, one file a device; a killed run continues from
it. The folder is not needed once the predictor is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DeviceError, PredictorError
from ..files import (
    Record,
    convert,
    digest,
    exclusive,
    plain,
    read_json,
    to_json,
    write_atomically,
)
from ..hyperspace import Hyperspace
from .devices.device import Device
from .features import FloatArray
from .fit import calibrate, cross_validated_us, fit_regressor
from .journal import Journal
from .lowering import Lowering, RuntimeKernel
from .measure import (
    Job,
    Noise,
    cold_mb,
    copies_on,
    idle_job,
    kernel_job,
    kernel_key,
    measure_all,
    measuring,
    network_job,
)
from .predictor import (
    Calibration,
    FittedKernel,
    LatencyPredictor,
    Provenance,
    load_predictor,
)
from .report import error_statistics, gate_failures, network_statistics
from .report_plot import write_accuracy_plot
from .sampling import (
    WIDER_TILTS,
    KernelPool,
    Network,
    kernel_pool,
    kernels_beside,
    more_kernels,
    random_networks,
    sample_kernels,
    smallest_networks,
)

# Part of the journal's name: measurements taken in another way are not mixed with these.
_METHOD = 4
# Share of the calibration's networks that are the hyperspace's smallest, if it has as many.
_SMALLEST = 0.13
# Microseconds of a kernel that takes no longer than what is subtracted from it.
_LEAST_US = 0.01
# Kernels of a type that a regressor is fitted to at least.
_FEWEST = 8


class ProfileOptions(Record, frozen=True):
    """How thoroughly to profile.

    Attributes
    ----------
    seed : of everything drawn
    kernels_per_type : configurations measured of each kernel type at first
    more_kernels : configurations measured then, mostly of types that are predicted badly
    rounds : visits in quiet moments to each model, spread over the session
    repeats : runs in a visit
    calibration_networks : subnets measured whole to fit the calibration
    validation_networks : subnets of other spaces measured whole, only for the report
    """

    seed: int = 0
    kernels_per_type: int = 100
    more_kernels: int = 700
    rounds: int = 5
    repeats: int = 20
    calibration_networks: int = 45
    validation_networks: int = 45

    def __post_init__(self) -> None:
        least = {
            "seed": 0,
            "kernels_per_type": 8,
            "more_kernels": 0,
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


def profile_device(
    device: Device,
    hyperspace: Hyperspace,
    output: Path,
    options: ProfileOptions | None = None,
    force: bool = False,
    progress: bool = True,
) -> LatencyPredictor:
    """Measure a device on a hyperspace and write a predictor folder.

    Parameters
    ----------
    device : what runs and times the kernels
    hyperspace : its kernels and subnets are measured
    output : the predictor folder; its name becomes the predictor's
    options : how thoroughly
    force : write a predictor that fails its accuracy gate too, marked as such
    progress : show a progress bar

    Raises
    ------
    DeviceError
        The machine is too noisy to measure (with figures), or the runtime refuses a model.
    PredictorError
        The predictor fails its gate; the message says where. Its report is kept beside the
        measurements, and a predictor that was there before stays.
    LockedError
        Another process is profiling into the same folder, or measures where the device does.
    FileAccessError
        The folder cannot be written.
    """
    options = options or ProfileOptions()
    output = Path(output)
    with exclusive(output / ".profile" / "measurements"), measuring(device):
        run = _ProfileRun(device, hyperspace, output, options, progress)
        predictor = run.predictor()
        failures = predictor.provenance.failures
        if failures and not force:
            path = output / ".profile" / "failed_report.json"
            write_atomically(path, to_json(predictor.report))
            raise PredictorError(
                f"{output}: the predictor fails its accuracy gate: {'; '.join(failures)}. Its "
                f"report is {path}. Run again with more rounds or kernels, on a quieter machine, "
                "or with --force to keep it as it is; what was measured is kept"
            )
        predictor.save(output)
        write_accuracy_plot(predictor.report, output / "report.png")
    return load_predictor(output)


@dataclass(frozen=True)
class _ProfileRun:
    device: Device
    hyperspace: Hyperspace
    output: Path
    options: ProfileOptions
    progress: bool

    def predictor(self) -> LatencyPredictor:
        """Measure what is missing and fit; the same measurements give the same predictor."""
        options, machine = self.options, self.device.machine()
        name = digest(str(_METHOD), self.device.name, to_json(machine))
        lowering = self._lowering(name)
        journal = Journal(self.output / ".profile" / f"{name}.jsonl")
        streams = np.random.default_rng(options.seed).spawn(5)
        pool = kernel_pool(self.hyperspace, lowering, streams[0])
        count = options.calibration_networks
        calibration = smallest_networks(self.hyperspace, round(_SMALLEST * count))
        calibration += random_networks(
            self.hyperspace, streams[1], count - len(calibration), calibration, WIDER_TILTS
        )
        validation = random_networks(
            self.hyperspace, streams[2], options.validation_networks, calibration
        )
        networks = [network_job(self.device, n) for n in (*calibration, *validation)]
        kernels = sample_kernels(pool, streams[3], options.kernels_per_type)
        beside = kernels_beside(kernels, streams[4])
        noise = self._measure(self._kernel_jobs(kernels), journal, options.rounds)
        kernels += self._more(name, pool, kernels, noise, streams[3])
        beside = [k for k in beside if k not in set(kernels)]
        kernel_jobs = self._kernel_jobs([*kernels, *beside])
        jobs = list({job.key: job for job in (*kernel_jobs, *networks)}.values())
        noise = self._measure(jobs, journal, options.rounds)
        return self._fit(lowering, kernels, beside, calibration, validation, noise)

    def _lowering(self, name: str) -> Lowering:
        """How the device lowers kernels, as detected when its measurements were begun.

        It is kept, for a runtime may list equal operators in another order the next time; the note
        that keeps it also tells measurements of another device, which are not to be mixed in.
        """
        folder, machine = self.output / ".profile", self.device.machine()
        for path in sorted(folder.glob("*.machine.json")):
            if path.name != f"{name}.machine.json":
                before = read_json(path, dict)
                raise DeviceError(
                    f"{folder} holds measurements of {before['device']}, {before['runtime']} on "
                    f"{before['cpu']}; this is {self.device.name}, {machine.runtime} on "
                    f"{machine.cpu}, or other options of it. They are not mixed: delete that "
                    "folder, or name another output"
                )
        path = folder / f"{name}.machine.json"
        if path.exists():
            return convert(read_json(path, dict)["lowering"], Lowering, str(path))
        lowering = self.device.lowering()
        about = {"device": self.device.name, "runtime": machine.runtime, "cpu": machine.cpu}
        write_atomically(path, to_json(about | {"lowering": plain(lowering)}))
        return lowering

    def _measure(self, jobs: Sequence[Job], journal: Journal, rounds: int) -> Noise:
        options = self.options
        return measure_all(
            self.device, jobs, journal, rounds, options.repeats, options.seed, self.progress
        )

    def _kernel_jobs(self, kernels: Sequence[RuntimeKernel]) -> list[Job]:
        """Kernels, what must be subtracted from them, and the cost of calls; each once."""
        jobs = {}
        for kernel in kernels:
            copies = copies_on(self.device, kernel)
            for part in (kernel, self.device.contained(kernel)):
                if part is not None:
                    job = kernel_job(self.device, part, copies)
                    jobs[job.key] = job
            idle = idle_job(self.device, copies)
            jobs[idle.key] = idle
        return list(jobs.values())

    def _more(
        self,
        name: str,
        pool: KernelPool,
        kernels: list[RuntimeKernel],
        noise: Noise,
        rng: np.random.Generator,
    ) -> list[RuntimeKernel]:
        """Kernels to measure on top, more where the first ones are predicted badly."""
        # Kept, for a continued run has measured more, and would choose others.
        path = self.output / ".profile" / f"{name}.{self._plan_name(kernels)}.json"
        if path.exists():
            return [RuntimeKernel(*fields) for fields in read_json(path, list)]
        us = self._kernel_us(kernels, noise)
        predicted = cross_validated_us(kernels, us, self.options.seed)
        chosen = more_kernels(
            pool, kernels, np.abs(np.log(predicted / us)), rng, self.options.more_kernels
        )
        write_atomically(path, to_json([_fields(k) for k in chosen]))
        return chosen

    def _plan_name(self, kernels: Sequence[RuntimeKernel]) -> str:
        # More rounds of the same kernels are the same plan.
        chosen = (self.options.seed, self.options.more_kernels)
        return digest(str(chosen), *(k.key for k in kernels))

    def _kernel_us(self, kernels: Sequence[RuntimeKernel], noise: Noise) -> FloatArray:
        """Microseconds of each kernel: its copies' time less what is not the kernel's, per copy."""
        least, us = noise.least_us(), []
        for kernel in kernels:
            copies = copies_on(self.device, kernel)
            within = self.device.contained(kernel)
            rest = f"idle{copies}" if within is None else kernel_key(within, copies)
            us.append((least[kernel_key(kernel, copies)] - least[rest]) / copies)
        # The smallest kernels may drown in the call's cost.
        return np.maximum(us, _LEAST_US)

    def _fit(
        self,
        lowering: Lowering,
        contained: list[RuntimeKernel],
        beside: list[RuntimeKernel],
        calibration: list[Network],
        validation: list[Network],
        noise: Noise,
    ) -> LatencyPredictor:
        kernels, seed = [*contained, *beside], self.options.seed
        us = self._kernel_us(kernels, noise)
        visited, told = kernels, _above_noise(kernels, us)
        contained = [kernels[i] for i in told if i < len(contained)]
        kernels, us = [kernels[i] for i in told], us[told]
        fitted, kernel_report = {}, {}
        held_out = cross_validated_us(kernels, us, seed)
        for kind in sorted({k.type for k in kernels}):
            rows = [i for i, k in enumerate(kernels) if k.type == kind]
            mine = [kernels[i] for i in rows]
            all_of_kind = [k for k in visited if k.type == kind]
            fitted[kind] = FittedKernel.of(fit_regressor(kind, mine, us[rows], seed), all_of_kind)
            asked = [i for i in rows if i < len(contained)]
            kernel_report[kind] = error_statistics(held_out[asked], us[asked])

        def predictor(by: Calibration, report: dict[str, Any]) -> LatencyPredictor:
            failures = gate_failures(report) if report else ()
            where = self._provenance(failures)
            return LatencyPredictor(where, lowering, by, fitted, report, self.output)

        chains, network_us = [n.placed for n in calibration], noise.network_us(calibration)
        cold = cold_mb(self.device)
        calibrated = calibrate(lambda by: predictor(by, {}), chains, network_us, cold)
        reports, pairs = {}, {}
        for name, networks in (("networks", validation), ("calibration_networks", calibration)):
            predicted = calibrated.network_ms([n.placed for n in networks])
            measured = noise.network_us(networks) / 1e3
            reports[name] = network_statistics(predicted, measured)
            pairs[name] = np.stack([predicted, measured], axis=1).round(6).tolist()
        report = {
            "kernels": kernel_report,
            **reports,
            "noise": noise.report(),
            "kernels_measured": len(visited),
            "kernels_below_noise": len(visited) - len(kernels),
            "seconds": round(noise.seconds, 3),
            "options": self.options,
            "predicted_and_measured_ms": pairs,
            "measured_us": dict(zip((k.key for k in kernels), us.round(3).tolist(), strict=True)),
        }
        return predictor(calibrated.calibration, report)

    def _provenance(self, failures: tuple[str, ...]) -> Provenance:
        return Provenance(
            name=self.output.resolve().name,
            device=self.device.name,
            precision=self.device.precision,
            machine=self.device.machine(),
            hyperspaces={self.hyperspace.name: self.hyperspace.fingerprint},
            failures=failures,
        )


def _above_noise(kernels: Sequence[RuntimeKernel], us: FloatArray) -> list[int]:
    """Numbers of the kernels that take longer than what is subtracted from them.

    Times that are none would count as much as any in a fit of relative errors. All kernels of a
    type of which few are left stay.
    """
    found: list[int] = []
    for kind in {k.type for k in kernels}:
        rows = [i for i, k in enumerate(kernels) if k.type == kind]
        above = [i for i in rows if us[i] > _LEAST_US]
        found += above if len(above) >= _FEWEST else rows
    return sorted(found)


def _fields(k: RuntimeKernel) -> list[Any]:
    numbers = (k.hw, k.cin, k.cout, k.kernel_size, k.stride, k.squeezed)
    return [k.type, *numbers, k.activation, k.expand, k.positive]
