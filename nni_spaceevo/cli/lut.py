"""The verb `lut`: build, merge, import, price and show quantized LUTs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .common import (
    Verbs,
    add_hyperspace,
    add_hyperspace_of_lut,
    add_job,
    add_trust,
    named_predictor,
    read_lut,
)

if TYPE_CHECKING:
    from ..lut import QuantizedLUT


def add_verbs(verbs: Verbs) -> None:
    """Add the verb of this file."""
    group = verbs.add_parser("lut", help="build, merge, import, price and show quantized LUTs")
    steps = group.add_subparsers(required=True, metavar="step")

    step = steps.add_parser("build", help="distil all stages and build the job's LUT")
    add_job(step)
    step.set_defaults(run=_build)

    step = steps.add_parser("merge", help="collect rows of several machines; build the job's LUT")
    step.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="work/rows of another machine, or a copy of it",
    )
    add_job(step)
    step.set_defaults(run=_merge)

    _add_import(steps)

    step = steps.add_parser("price", help="the same losses with another device's latencies")
    step.add_argument("lut", type=Path, metavar="LUT", help="LUT file to read")
    add_hyperspace_of_lut(step)
    _add_predictor(step, required=True, text="latency predictor: folder, or one of the package's")
    add_trust(step)
    _add_output(step)
    step.set_defaults(run=_price)

    step = steps.add_parser("show", help="where a LUT comes from, and what is in it")
    step.add_argument("lut", type=Path, metavar="LUT", help="LUT file")
    add_hyperspace_of_lut(step)
    step.set_defaults(run=_show)


def _add_import(steps: Verbs) -> None:
    step = steps.add_parser("import", help="read the LUTs that SpaceEvo's authors published")
    step.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="FILE-OR-FOLDER",
        help="CSV, plain or .gz: stage<s>_<b>_<w>.csv as published, or joined, with a header",
    )
    add_hyperspace(step)
    other = step.add_mutually_exclusive_group(required=True)
    _add_predictor(other, text="latency predictor for stem and head, which the files lack")
    other.add_argument(
        "--other-stages-ms",
        nargs="+",
        metavar="RESOLUTION=MS",
        help="or their milliseconds, such as 160=1.2 192=1.7 224=2.3",
    )
    add_trust(step)
    step.add_argument("--device-name", default="", help="default: published:<hyperspace>")
    _add_output(step)
    step.set_defaults(run=_import)


def _add_predictor(step: argparse._ActionsContainer, text: str, *, required: bool = False) -> None:
    step.add_argument("--predictor", required=required, metavar="NAME", help=text)


def _add_output(step: argparse.ArgumentParser) -> None:
    step.add_argument("--output", type=Path, required=True, help="LUT file to write")


def _build(options: argparse.Namespace) -> None:
    from ..jobs.job import Job
    from ..jobs.prepare import prepared_lut

    job = Job(options.job)
    _say(job.lut_path, prepared_lut(job))


def _merge(options: argparse.Namespace) -> None:
    from ..jobs.distillation import rows_folder
    from ..jobs.job import Job
    from ..jobs.prepare import merged_lut

    job = Job(options.job)
    rows = rows_folder(job)
    new, missing = rows.merge(options.folders), rows.missing()
    print(f"{rows.path}: {len(new)} new, {len(rows.tasks) - len(missing)} of {len(rows.tasks)}")
    if missing:
        print(f"missing: {', '.join(missing)}")
    else:
        _say(job.lut_path, merged_lut(job))


def _import(options: argparse.Namespace) -> None:
    from ..hyperspace import load_hyperspace
    from ..lut import OtherStages
    from ..lut.published import import_published

    hyperspace = load_hyperspace(options.hyperspace)
    if options.predictor is None:
        other = OtherStages.given(hyperspace, _milliseconds(options.other_stages_ms))
    else:
        predictor = named_predictor(options.predictor, options.trust_pickle)
        other = OtherStages.predicted(hyperspace, predictor)
    lut = import_published(options.sources, hyperspace, other, options.device_name)
    lut.save(options.output)
    _say(options.output, lut)


def _milliseconds(texts: list[str]) -> dict[int, float]:
    """Read `160=1.2` and the like."""
    found: dict[int, float] = {}
    for text in texts:
        resolution, _, ms = text.partition("=")
        try:
            pixels, value = int(resolution), float(ms)
        except ValueError:
            raise ConfigError(
                f"--other-stages-ms: {text!r}; expected RESOLUTION=MS, such as 160=1.2"
            ) from None
        if pixels in found:
            raise ConfigError(f"--other-stages-ms: {pixels} is given twice")
        found[pixels] = value
    return found


def _price(options: argparse.Namespace) -> None:
    lut = read_lut(options.lut, options.hyperspace)
    priced = lut.priced(named_predictor(options.predictor, options.trust_pickle))
    priced.save(options.output)
    _say(options.output, priced)


def _show(options: argparse.Namespace) -> None:
    from ..lut.summary import format_lut

    print(format_lut(read_lut(options.lut, options.hyperspace)))


def _say(path: Path, lut: QuantizedLUT) -> None:
    from ..lut.loss_errors import LossErrors, verdict

    low, high = lut.latency_span
    print(f"{path}: {len(lut)} sub-stages, subnets of {low:.3f} to {high:.3f} ms")
    if errors := LossErrors.of(lut):
        print(f"{path}: {verdict(errors)}")
