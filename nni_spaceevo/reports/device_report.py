"""A page about a device: where INT8 is faster, steps at channel multiples, what breaks INT8.

The page is one HTML file that needs neither a network nor scripts. Every figure on it comes from
the predictors that it is written from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PredictorError
from ..latency.comparison import (
    STEP,
    VECTOR,
    SpeedGrid,
    UnitCost,
    in_order,
    speed_grids,
    step_curves,
    tail_penalty,
    unit_costs,
)
from ..latency.lowering import ACTIVATIONS, RuntimeKernel
from ..latency.machine import Machine
from ..latency.predictor import LatencyPredictor
from ..latency.report import KERNELS_WITHIN_10, KERNELS_WITHIN_10_ELSE, NETWORKS_WITHIN_10
from ..latency.report_plot import accuracy_svg, steps_svg
from ..page import Html, bullets, facts, join, paragraph, table, tag, write_page

# Types whose latency over channels is drawn.
_STEPPED = ("conv1x1", "dwconv")
# A penalty below this is within what predictions are off.
_NOTABLE = 1.05
# Ends of the colour scale, as factors, and the colours there and at 1.
_FULL_COLOUR = 4.0
_NONE: dict[str, Any] = {"count": 0}
_SLOWER, _EQUAL, _FASTER = (233, 143, 84), (246, 247, 248), (96, 160, 208)


def write_device_report(
    int8: LatencyPredictor, float32: LatencyPredictor | None, output: Path
) -> Path:
    """Write the page about a device.

    Parameters
    ----------
    int8 : predictor of the device's INT8 networks
    float32 : predictor of its FP32 networks; without one the page says what is missing
    output : the HTML file to write

    Returns
    -------
    `output`

    Raises
    ------
    PredictorError
        One of the predictors is of another precision.
    FileAccessError
        The page cannot be written.
    """
    _expect(int8, "int8")
    if float32 is not None:
        _expect(float32, "float32")
    grids = [] if float32 is None else speed_grids(int8, float32)
    sections = (
        _heading(int8),
        _gate(int8),
        _in_short(int8, float32, grids),
        _speeds(int8, float32, grids),
        _steps(int8),
        _units(int8, float32),
        _accuracy(int8, float32),
        _method(int8),
    )
    output = Path(output)
    write_page(output, f"{int8.name}: INT8 on {int8.machine.cpu}", *sections)
    return output


def _expect(predictor: LatencyPredictor, precision: str) -> None:
    given = predictor.provenance.precision
    if given != precision:
        raise PredictorError(
            f"{predictor.folder}: a predictor of {given} networks; expected {precision}"
        )


# ---- what comes first ----------------------------------------------------------------------------


def _heading(int8: LatencyPredictor) -> Html:
    m = int8.machine
    threads = "1 thread" if m.threads == 1 else f"{m.threads} threads"
    line = f"{m.cpu}, {m.runtime}, {threads}, batch 1"
    made = f"Predictor {int8.name}, device {int8.provenance.device}"
    return join(tag("h1", f"INT8 on {m.cpu}"), tag("p", f"{line}. {made}", class_="soft"))


def _gate(int8: LatencyPredictor) -> Html:
    """The accuracy gate's verdict, as a banner."""
    failures = int8.provenance.failures
    if failures:
        text = "This predictor failed its accuracy gate. Read the figures below with that in mind:"
        return tag(
            "div", paragraph(tag("b", text)), bullets(failures), class_="banner failed", role="note"
        )
    networks = int8.report.get("networks", _NONE)
    if not networks["count"]:
        text = "No networks were held out: nothing is known about this predictor's accuracy."
        return tag("div", paragraph(text), class_="banner failed", role="note")
    text = (
        f"The predictor passed its accuracy gate: {networks['within_5']:.0f} % of "
        f"{networks['count']} held-out networks within 5 %, {networks['within_10']:.0f} % within "
        f"10 %, between {networks['least_ms']:.3g} and {networks['most_ms']:.3g} ms."
    )
    return tag("div", paragraph(text), class_="banner", role="note")


def _in_short(
    int8: LatencyPredictor, float32: LatencyPredictor | None, grids: Sequence[SpeedGrid]
) -> Html:
    findings = [*_speed_findings(grids), *_step_findings(int8), *_float_findings(int8)]
    if float32 is None:
        findings.insert(0, "How INT8 compares with FP32 is not known: no FP32 predictor was given.")
    return join(tag("h2", "In short"), bullets(findings), _speed_summary(grids))


def _speed_findings(grids: Sequence[SpeedGrid]) -> list[str]:
    medians = {grid.title: float(np.median(grid.known)) for grid in grids}
    if not medians:
        return []
    order = sorted(medians, key=lambda title: -medians[title])
    most, least = (f"{t} (median {_factor(medians[t])})" for t in (order[0], order[-1]))
    findings = [f"Against FP32, INT8 gains most on {most} and least on {least}."]
    slower = [title for title in order if medians[title] < 1]
    if slower:
        findings.append(f"Slower in INT8 than in FP32, in the median: {', '.join(slower)}.")
    return findings


def _step_findings(int8: LatencyPredictor) -> list[str]:
    penalties = _known_penalties(int8)
    notable = sorted((k for k, p in penalties.items() if p >= _NOTABLE), key=penalties.__getitem__)
    if not notable:
        least = f"{100 * (_NOTABLE - 1):.0f} %"
        kinds = ", ".join(penalties)
        smooth = f"No steps of {least} or more at multiples of {VECTOR} channels in {kinds}."
        return [smooth] if penalties else []
    text = ", ".join(f"{kind} {penalties[kind]:.2f}×" for kind in reversed(notable))
    return [
        f"Widths that are {STEP} more than a multiple of {VECTOR} cost more than midway between "
        f"the multiples beside them: {text}."
    ]


def _known_penalties(int8: LatencyPredictor) -> dict[str, float]:
    found = {kind: tail_penalty(int8, kind) for kind in in_order(int8.kernels)}
    return {kind: penalty for kind, penalty in found.items() if penalty is not None}


def _float_findings(int8: LatencyPredictor) -> list[str]:
    operators = int8.lowering.operators
    if not any(":" in name for names in operators.values() for name in names):
        return ["The runtime does not tell which operators it starts, nor their precision."]
    breaking = [unit for unit in operators if int8.lowering.in_float(unit)]
    if not breaking:
        return ["Everything computes in INT8."]
    return [
        f"Computed in float although the network is INT8, at least in part: {', '.join(breaking)}."
    ]


def _speed_summary(grids: Sequence[SpeedGrid]) -> Html:
    if not grids:
        return Html()
    rows = [
        (
            grid.title,
            _coloured(float(np.median(grid.known))),
            f"{_number(grid.known.min())} to {_number(grid.known.max())}",
            str(len(grid.known)),
        )
        for grid in grids
    ]
    headers = ("FP32 time / INT8 time", "median", "range", "shapes")
    return table(headers, rows)


def _factor(value: float) -> str:
    return f"{_number(value)}×"


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


# ---- INT8 beside FP32 ----------------------------------------------------------------------------


def _speeds(
    int8: LatencyPredictor, float32: LatencyPredictor | None, grids: Sequence[SpeedGrid]
) -> Html:
    title = tag("h2", "How much faster INT8 is than FP32")
    if float32 is None:
        return join(title, _missing_float(int8))
    if not grids:
        return join(title, paragraph("The two predictors measured no kernels in common."))
    text = (
        "FP32 time over INT8 time by the predictors, size of the feature map down, channels "
        "across (input and output alike, stride 1). Empty where either predictor measured nothing "
        "similar. An activation is compared together with the 1x1 convolution before it."
    )
    return join(
        title,
        paragraph(text),
        _other_machine(int8.machine, float32),
        _legend(),
        tag("div", *(_heat_map(grid) for grid in grids), class_="grids"),
    )


def float_name(name: str) -> str:
    """What the FP32 predictor beside an INT8 one is called."""
    return name.replace("int8", "fp32") if "int8" in name else f"{name}_fp32"


def _missing_float(int8: LatencyPredictor) -> Html:
    p = int8.provenance
    device = f"{p.device.removesuffix('-int8')}-fp32" if p.device.endswith("-int8") else "DEVICE"
    hyperspace = next(iter(p.hyperspaces), "HYPERSPACE")
    command = (
        f"spaceevo profile --device {device} --hyperspace {hyperspace} "
        f"--output latency_predictors/{float_name(int8.name)}"
    )
    return join(
        paragraph(
            "No FP32 predictor of this device was given, so nothing can be compared. Make "
            "one on the same machine, then write this page again with both:"
        ),
        paragraph(tag("code", command)),
    )


def _other_machine(mine: Machine, float32: LatencyPredictor) -> Html:
    """A warning where the two predictors do not come from one machine and runtime."""
    other = float32.machine
    if (mine.cpu, mine.flags, mine.runtime) == (other.cpu, other.flags, other.runtime):
        failures = float32.provenance.failures
        text = "The FP32 predictor failed its accuracy gate; the factors are as uncertain as that."
        return _note(text) if failures else Html()
    return _note(
        f"The FP32 predictor {float32.name} is of {other.cpu}, {other.runtime}: the factors "
        "compare two machines or runtimes."
    )


def _note(text: str) -> Html:
    return tag("div", paragraph(text), class_="banner failed", role="note")


def _heat_map(grid: SpeedGrid) -> Html:
    head = tag("tr", tag("th", ""), *(tag("th", str(width)) for width in grid.widths))
    rows = (
        tag("tr", tag("th", f"{size}×{size}"), *map(_coloured, ratios.tolist()))
        for size, ratios in zip(grid.sizes, grid.ratio, strict=True)
    )
    return tag("div", tag("h3", grid.title), tag("table", head, *rows, class_="heat"))


def _coloured(ratio: float) -> Html:
    """A cell in the colour of its ratio; empty for nan."""
    if np.isnan(ratio):
        return tag("td", "")
    return tag("td", _number(ratio), style=f"background:{_colour(ratio)}")


def _colour(ratio: float) -> str:
    """Diverging at 1, on a logarithmic scale that ends at a factor of `_FULL_COLOUR`."""
    place = np.log(max(ratio, 1e-3)) / np.log(_FULL_COLOUR)
    end = _FASTER if place > 0 else _SLOWER
    share = min(abs(place), 1.0)
    mixed = (round(a + (b - a) * share) for a, b in zip(_EQUAL, end, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _legend() -> Html:
    steps = ((0.25, "0.25: INT8 slower"), (0.5, "0.5"), (1.0, "1"), (2.0, "2"), (4.0, "4: faster"))
    spans = (tag("span", text, style=f"background:{_colour(r)}") for r, text in steps)
    return tag("div", *spans, class_="legend")


# ---- steps ---------------------------------------------------------------------------------------


def _steps(int8: LatencyPredictor) -> Html:
    title = tag("h2", f"Steps at multiples of {VECTOR} channels")
    curves = [curve for kind in _STEPPED for curve in step_curves(int8, kind)]
    if not curves:
        return join(title, paragraph("This predictor keeps too few measured kernels to draw any."))
    text = (
        "Lines are predictions, dots are measurements of single kernels. Where the two lines are "
        f"apart, a width that is not a multiple of {VECTOR} costs extra."
    )
    return join(title, paragraph(text), steps_svg(curves), _penalties(int8))


def _penalties(int8: LatencyPredictor) -> Html:
    penalties = _known_penalties(int8)
    others = [kind for kind in in_order(int8.kernels) if kind not in penalties]
    parts = []
    if penalties:
        text = (
            f"Cost of a width {STEP} above a multiple of {VECTOR}, over the mean of the two "
            "multiples beside it; median over the shapes that were measured. 1 means no step."
        )
        factors = [f"{penalty:.2f}×" for penalty in penalties.values()]
        parts += [paragraph(text), table(("", *penalties), [("factor", *factors)])]
    if others:
        text = f"Measured at too few widths beside the multiples to tell: {', '.join(others)}."
        parts.append(tag("p", text, class_="soft"))
    return join(*parts)


# ---- activations and composite kernels -----------------------------------------------------------


def _units(int8: LatencyPredictor, float32: LatencyPredictor | None) -> Html:
    title = tag("h2", "What the runtime makes of activations and kernels")
    costs = unit_costs(int8)
    float_costs = {} if float32 is None else {c.unit: c for c in unit_costs(float32, costs)}
    groups = (
        ("Activations", [c for c in costs if c.unit in ACTIVATIONS]),
        ("Kernels", [c for c in costs if c.unit not in ACTIVATIONS]),
    )
    text = (
        "Operators that the runtime starts in an INT8 network, those of them that compute in "
        "float, and those that only convert. Cost: beside a 1x1 convolution of the same size and "
        "width, at a typical one of the shapes that were measured."
    )
    tables = (_unit_table(int8, name, rows, float_costs) for name, rows in groups if rows)
    return join(title, paragraph(text), *tables)


def _unit_table(
    int8: LatencyPredictor, name: str, costs: Sequence[UnitCost], floats: dict[str, UnitCost]
) -> Html:
    headers = ["", "operators", "in float", "converts", "at", "µs", "× conv1x1"]
    if floats:
        headers.append("× in FP32")
    rows = []
    for cost in costs:
        cells = [cost.unit, _operators(int8, cost), _names(cost.in_float), _names(cost.conversions)]
        cells += [_place(cost.at), f"{cost.us:.1f}" if cost.at else "", _relative(cost)]
        if floats:
            cells.append(_relative(floats.get(cost.unit)))
        rows.append(cells)
    return tag("div", table(headers, rows, text=4, caption=name), style="margin:14px 0")


def _operators(int8: LatencyPredictor, cost: UnitCost) -> Html:
    parts: list[str] = []
    if cost.how:
        parts.append(tag("div", cost.how, class_="soft"))
    if cost.operators or not cost.how:
        parts.append(_names([o.partition(":")[0] for o in cost.operators]) or "none of its own")
    others = int8.lowering.unaligned.get(cost.unit)
    if others:
        names = _names([o.partition(":")[0] for o in others])
        parts.append(tag("div", f"channels that leave a rest: {names}", class_="soft"))
    return tag("td", *parts, class_="text")


def _names(names: Sequence[str]) -> str:
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items())


def _place(at: RuntimeKernel | None) -> str:
    if at is None:
        return ""
    widths = f"{at.cin} > {at.cout}" if at.cin != at.cout else str(at.cout)
    window = f", window {at.kernel_size}×{at.kernel_size}" if at.kernel_size > 1 else ""
    return f"{at.hw}×{at.hw}, {widths} ch.{window}"


def _relative(cost: UnitCost | None) -> str:
    if cost is None or cost.is_free:
        return "–" if cost is None else "0"
    if cost.relative is not None:
        # The difference of two predictions may come out below nothing.
        return f"{cost.relative:.2f}" if cost.relative > 0 else "≤ 0"
    return "–" if cost.at else "not measured"


# ---- accuracy and method -------------------------------------------------------------------------


def _accuracy(int8: LatencyPredictor, float32: LatencyPredictor | None) -> Html:
    text = (
        "Kernels are held out in turn, networks are of other search spaces than those that the "
        "calibration was fitted to. Errors are relative to what was measured."
    )
    predictors = [p for p in (int8, float32) if p is not None]
    tables = (_held_out(p) for p in predictors)
    return join(
        tag("h2", "How well the predictor predicts"),
        paragraph(text),
        accuracy_svg(int8.report),
        tag("div", *tables, class_="columns"),
        *_order_of_networks(int8.report.get("networks", _NONE)),
    )


def _order_of_networks(networks: dict[str, Any]) -> list[Html]:
    """Whether networks are predicted in their order, and small and large ones alike."""
    sentences = []
    if "kendall_tau" in networks:
        sentences.append(
            f"Kendall's tau between predicted and measured: {networks['kendall_tau']:.3f}."
        )
    if "bias_of_thirds" in networks:
        biases = " / ".join(f"{bias:+.1f}" for bias in networks["bias_of_thirds"])
        sentences.append(f"Bias of small, middle and large networks: {biases} %.")
    return [paragraph("INT8 networks: " + " ".join(sentences))] if sentences else []


def _held_out(predictor: LatencyPredictor) -> Html:
    report, passed = predictor.report, not predictor.provenance.failures
    caption = f"{predictor.name} ({predictor.provenance.precision}): gate "
    caption += "passed" if passed else "failed"
    headers = ("held out", "count", "bias %", "RMSPE %", "< 5 %", "< 10 %", "asked for")
    kinds = report.get("kernels", {}).items()
    rows = [_error_row(kind, row, _asked(kind)) for kind, row in kinds]
    rows.append(_error_row("networks", report.get("networks", _NONE), NETWORKS_WITHIN_10))
    return table(headers, rows, caption=caption)


def _asked(kind: str) -> float:
    return KERNELS_WITHIN_10.get(kind, KERNELS_WITHIN_10_ELSE)


def _error_row(name: str, row: dict[str, Any], asked: float) -> list[str]:
    if not row["count"]:
        return [name, "0", *[""] * 5]
    within: str = f"{row['within_10']:.0f}"
    if row["within_10"] < asked:
        within = tag("td", within, class_="failed")
    numbers = [f"{row['bias']:+.1f}", f"{row['rmspe']:.1f}", f"{row['within_5']:.0f}"]
    return [name, str(row["count"]), *numbers, within, f"{asked:g}"]


def _method(int8: LatencyPredictor) -> Html:
    return join(
        tag("h2", "How it was measured"),
        facts(_machine_facts(int8)),
        tag("h3", "From kernels to networks", style="margin-top:22px"),
        paragraph(
            "Kernels are timed alone, in the layout that the runtime uses inside a network. A "
            "network is the sum of its kernels and operators, with four terms fitted to whole "
            "networks:"
        ),
        _calibration(int8),
    )


def _machine_facts(int8: LatencyPredictor) -> list[tuple[str, str]]:
    m, p, report = int8.machine, int8.provenance, int8.report
    found = [
        ("CPU", f"{m.cpu}, {m.cores} logical CPUs"),
        ("extensions", ", ".join(m.flags) or "not known"),
        ("frequency governor", m.governor or "cannot be read"),
        ("runtime", m.runtime),
        ("kernels run with", _options(m.kernel_options)),
        ("networks run with", _options(m.network_options)),
        ("protocol", m.protocol),
        ("hyperspaces", ", ".join(p.hyperspaces)),
    ]
    known = (
        ("kernels_measured", "kernels measured", str),
        ("seconds", "measuring took", lambda seconds: f"{seconds:.0f} s"),
        ("noise", "slow moments", _noise),
        ("options", "profiled with", _options),
    )
    found += [(label, show(report[key])) for key, label, show in known if key in report]
    return found + [("note", note) for note in p.notes]


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in options.items()) or "defaults"


def _noise(noise: dict[str, Any]) -> str:
    return f"{noise['slow_slots']:.0f} % of {noise['slots']} visits; the least time counts"


def _calibration(int8: LatencyPredictor) -> Html:
    c = int8.calibration
    shares = zip(c.sums_us, c.shares, strict=True)
    rows = [
        (
            "scale",
            ", ".join(f"{kind} {scale:.2f}" for kind, scale in c.scales.items())
            or f"{c.scale:.3f}",
            "kernels inside a network find colder caches than alone",
        ),
        ("per operator", f"{c.node_us:.2f} µs", "what starting an operator costs on top"),
        (
            "per MB of weights",
            f"{c.weight_us_per_mb:.1f} µs",
            "fetching weights anew; a kernel timed alone keeps them in its caches",
        ),
        (
            "constant",
            f"{c.constant_us:.1f} µs",
            "of every run: the call, quantizing the input, the output's way back",
        ),
        (
            "share",
            ", ".join(f"{100 * s:.0f} % of {us / 1e3:.3g} ms" for us, s in shares),
            "of that sum which a network costs: less where much of it stays in the caches",
        ),
    ]
    return table(("term", "value", "meaning"), [(n, v, _text(m)) for n, v, m in rows])


def _text(content: str) -> Html:
    return tag("td", content, class_="text")
