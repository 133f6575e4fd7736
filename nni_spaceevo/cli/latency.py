"""Verbs about latency: `profile`, `predict`, `predictor` and `device-report`."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PredictorWarning
from .common import Verbs, add_hyperspace, add_trust, is_nn_meter, named_predictor


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    _add_profile(verbs)
    _add_predict(verbs)
    _add_predictor(verbs)

    verb = verbs.add_parser("device-report", help="HTML page: what INT8 costs on a device")
    verb.add_argument("name", help="INT8 predictor: folder, or one of the package's")
    verb.add_argument("--fp32", help="FP32 predictor to compare with; default: its sibling")
    verb.add_argument("--output", type=Path, help="HTML file; default: NAME.html")
    verb.set_defaults(run=_device_report)


# Those of `ProfileOptions`, whose module is too heavy to be read before a verb is chosen.
PROFILE_OPTIONS = {
    "seed": "of everything drawn; default: 0",
    "rounds": "quiet visits to each kernel; default: 5",
    "kernels_per_type": "measured at first; default: 100",
    "more_kernels": "measured then, where errors are; default: 700",
    "calibration_networks": "measured whole; default: 45",
    "validation_networks": "held out; default: 45",
}


def _add_profile(verbs: Verbs) -> None:
    verb = verbs.add_parser("profile", help="fit a latency predictor for a device")
    verb.add_argument(
        "--device",
        default="ort-x86-int8",
        help="ort-x86-int8 (default), ort-x86-fp32, openvino-x86-int8, litert-x86-int8, "
        "command:…, adb:…, or module:Class",
    )
    add_hyperspace(verb)
    verb.add_argument("--output", type=Path, required=True, help="predictor folder to write")
    for name, what in PROFILE_OPTIONS.items():
        verb.add_argument(f"--{name.replace('_', '-')}", type=int, help=what)
    verb.add_argument("--force", action="store_true", help="keep it though it fails its gate")
    verb.set_defaults(run=_profile)


def _add_predict(verbs: Verbs) -> None:
    verb = verbs.add_parser("predict", help="latency of subnets of a space")
    verb.add_argument("subnet", nargs="*", help="subnet codes; none: smallest and largest")
    verb.add_argument("--space", required=True, help="space code, such as onnxw-151122-023231")
    verb.add_argument("--job", type=Path, help="job file with hyperspace and predictor")
    verb.add_argument(
        "--predictor",
        help="folder, or one of the package's; default: the package's for CPUs like this one",
    )
    verb.add_argument("--hyperspace", help="YAML file or preset; default: the space's preset")
    verb.add_argument("--explain", action="store_true", help="kernel by kernel")
    add_trust(verb)
    verb.set_defaults(run=_predict)


def _add_predictor(verbs: Verbs) -> None:
    group = verbs.add_parser("predictor", help="list, show, check, import and export predictors")
    steps = group.add_subparsers(required=True, metavar="step")
    steps.add_parser("list", help="predictors of the package").set_defaults(run=_predictor_list)

    step = steps.add_parser("show", help="held-out errors of a predictor")
    step.add_argument("name", help="folder, or one of the package's")
    step.set_defaults(run=_predictor_show)

    step = steps.add_parser("validate", help="measure subnets here and compare")
    step.add_argument("name", help="folder, or one of the package's")
    step.add_argument("--device", help="default: the one it was fitted on")
    add_hyperspace(step)
    step.add_argument("--networks", type=int, default=20, help="subnets to measure")
    step.set_defaults(run=_predictor_validate)

    step = steps.add_parser("export-nn-meter", help="write a predictor folder for nn-Meter")
    step.add_argument("name", help="folder, or one of the package's")
    add_hyperspace(step)
    step.add_argument("--output", type=Path, required=True, help="folder to write")
    step.add_argument("--seed", type=int, default=0)
    step.set_defaults(run=_predictor_export)

    step = steps.add_parser("nn-meter-onnx", help="rewrite an ONNX so that nn-Meter prices it all")
    step.add_argument("source", type=Path, help="float ONNX as exporters write it")
    step.add_argument("target", type=Path, help="ONNX of the same numbers to write")
    step.set_defaults(run=_predictor_visible)

    step = steps.add_parser("fit-published", help="fit to the authors' published latencies")
    step.add_argument("published", type=Path, help="folder of the published data")
    step.add_argument("--device", required=True, choices=["xeon", "pixel4"])
    step.add_argument("--output", type=Path, required=True, help="predictor folder to write")
    step.add_argument("--seed", type=int, default=0)
    step.set_defaults(run=_predictor_published)


def _profile(options: argparse.Namespace) -> None:
    from ..hyperspace import load_hyperspace
    from ..latency import format_report
    from ..latency.devices import get_device
    from ..latency.profile import ProfileOptions, profile_device

    given = {name: getattr(options, name) for name in PROFILE_OPTIONS}
    settings = ProfileOptions(**{name: n for name, n in given.items() if n is not None})
    hyperspace, device = load_hyperspace(options.hyperspace), get_device(options.device)
    predictor = profile_device(device, hyperspace, options.output, settings, options.force)
    print(format_report(predictor.report))
    print(f"predictor {predictor.name} -> {options.output}")


def _predict(options: argparse.Namespace) -> None:
    from ..hyperspace import mflops, mparams, place
    from ..latency.explain import explain, format_explanation

    hyperspace, predictor = _hyperspace_and_predictor(options)
    space = hyperspace.space(options.space)
    ends = (hyperspace.smallest_subnet(space), hyperspace.largest_subnet(space))
    codes = [hyperspace.subnet(space, c) for c in options.subnet] or list(ends)
    stages = [hyperspace.subnet_blocks(space, code) for code in codes]
    chains = [
        place((b for _, blocks in found for b in blocks), code.resolution)
        for found, code in zip(stages, codes, strict=True)
    ]
    latencies = predictor.network_ms(chains)
    for code, chain, found, ms in zip(codes, chains, stages, latencies, strict=True):
        kernels = [kernel for block in chain for kernel in block.kernels]
        print(f"{ms:.3f} ms  {mflops(kernels):.1f} MFLOPs  {mparams(kernels):.2f} MParams  {code}")
        if options.explain:
            names = [
                f"{name} block {i}" if len(blocks) > 1 else name
                for name, blocks in found
                for i, _ in enumerate(blocks, 1)
            ]
            print(format_explanation(explain(predictor, chain, names)))


def _hyperspace_and_predictor(options: argparse.Namespace) -> tuple[Any, Any]:
    """From the job file, or from options that say what a job file would."""
    from ..hyperspace import load_hyperspace

    if options.job is not None:
        if given := [n for n in ("predictor", "hyperspace", "trust_pickle") if getattr(options, n)]:
            option = given[0].replace("_", "-")
            raise ConfigError(f"--{option}: the job file says that; expected it or --job, not both")
        from ..jobs.job import Job
        from ..jobs.predictors import prepared_predictor

        job = Job(options.job)
        return job.hyperspace, prepared_predictor(job, say=lambda line: None)
    hyperspace = load_hyperspace(options.hyperspace or options.space.partition("-")[0])
    name = options.predictor or _package_predictor()
    if options.explain and is_nn_meter(name):
        raise ConfigError("--explain: an nn-Meter predictor does not tell what the runtime does")
    return hyperspace, named_predictor(name, options.trust_pickle)


def _package_predictor() -> str:
    """The package's predictor for CPUs like this one; tells on which one it was measured.

    Raises
    ------
    ConfigError
        There is none.
    """
    from ..files import packed_folder
    from ..latency import load_predictor, local_device_name
    from ..latency.machine import cpu_description

    name, cpu = local_device_name(), cpu_description()[0]
    folder = packed_folder("latency_predictors") / name
    if not folder.is_dir():
        raise ConfigError(
            f"--predictor: expected one, for the package has no {name}, for CPUs like this {cpu}; "
            "`spaceevo predictor list` shows what there is, `spaceevo profile` makes one"
        )
    with warnings.catch_warnings():
        # It is read once more, and says the same then.
        warnings.simplefilter("ignore", PredictorWarning)
        measured = load_predictor(folder).machine.cpu
    if measured != cpu:
        text = f"latency predictor {name} was measured on {measured}; this is {cpu}"
        warnings.warn(text, PredictorWarning, stacklevel=2)
    return str(folder)


def _predictor_list(options: argparse.Namespace) -> None:
    from ..files import packed_folder
    from ..latency import load_predictor

    for path in sorted(packed_folder("latency_predictors").glob("*/device.yaml")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PredictorWarning)
            p = load_predictor(path.parent)
        where = f"{p.machine.runtime} on {p.machine.cpu}"
        passed = "failed its gate" if p.provenance.failures else "passed its gate"
        print(f"{p.name:<24}{', '.join(p.provenance.hyperspaces):<10}{passed:<17}{where}")


def _predictor_show(options: argparse.Namespace) -> None:
    from ..latency import find_predictor, format_report, load_predictor

    predictor = load_predictor(find_predictor(options.name))
    print(f"{predictor.name}: {predictor.machine.runtime} on {predictor.machine.cpu}")
    print(format_report(predictor.report))
    for note in predictor.provenance.notes:
        print(f"note: {note}")


def _predictor_validate(options: argparse.Namespace) -> None:
    from ..hyperspace import load_hyperspace
    from ..latency import find_predictor, load_predictor
    from ..latency.devices import get_device
    from ..latency.validate import format_validation, validate_predictor

    predictor = load_predictor(find_predictor(options.name))
    device = get_device(options.device or predictor.provenance.device)
    hyperspace = load_hyperspace(options.hyperspace)
    report = validate_predictor(predictor, device, hyperspace, options.networks)
    print(format_validation(predictor.name, report))


def _predictor_export(options: argparse.Namespace) -> None:
    from ..hyperspace import load_hyperspace
    from ..latency import find_predictor, load_predictor
    from ..latency.nn_meter_export import export_nn_meter

    predictor = load_predictor(find_predictor(options.name))
    hyperspace = load_hyperspace(options.hyperspace)
    print(export_nn_meter(predictor, hyperspace, options.output, options.seed))


def _predictor_visible(options: argparse.Namespace) -> None:
    from ..latency.nn_meter_export import make_visible

    make_visible(options.source, options.target)
    print(f"{options.source} -> {options.target}")


def _predictor_published(options: argparse.Namespace) -> None:
    from ..latency import format_report
    from ..latency.published import fit_published

    predictor = fit_published(options.device, options.published, options.output, options.seed)
    print(format_report(predictor.report))


def _device_report(options: argparse.Namespace) -> None:
    from ..errors import PredictorError
    from ..latency import find_predictor, load_predictor
    from ..reports.device_report import float_name, write_device_report

    int8 = load_predictor(find_predictor(options.name))
    sibling = options.fp32 or int8.folder.with_name(float_name(int8.folder.name))
    try:
        float32 = load_predictor(find_predictor(sibling))
    except PredictorError:
        if options.fp32:
            raise
        float32 = None
    output = options.output or Path(f"{int8.name}.html")
    print(write_device_report(int8, float32, output))
