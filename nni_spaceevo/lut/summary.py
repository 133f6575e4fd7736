"""A LUT in words and small tables."""

from __future__ import annotations

import numpy as np

from .loss_errors import LossErrors, error_table, verdict
from .table import QuantizedLUT


def format_lut(lut: QuantizedLUT) -> str:
    """Where a LUT comes from, medians of loss and latency, and how well the losses are known."""
    header, unpriced = lut.header, not lut.header.device
    other = ", ".join(f"{resolution}: {ms:.4g} ms" for resolution, ms in header.other_ms.items())
    errors = LossErrors.of(lut)
    facts = {
        "hyperspace": f"{header.hyperspace} ({header.hyperspace_fingerprint})",
        "teacher": header.teacher,
        "made with": header.made_with,
        "device": f"{header.device} ({header.device_fingerprint})" if not unpriced else "unpriced",
        "stem, head, constant": f"{other}; {header.other_ms_source}" if other else "",
        "rows": f"{len(lut)}, {_subnets(lut)}" if not unpriced else str(len(lut)),
        "losses": verdict(errors) if errors else "with unknown errors",
    }
    lines = [f"{name:<14} {value}" for name, value in facts.items() if value]
    lines += _medians(lut, "median NSR loss", "loss")
    lines += [] if unpriced else _medians(lut, "median ms", "latency_ms")
    lines += ["", *error_table(errors)] if errors else []
    return "\n".join(lines)


def _subnets(lut: QuantizedLUT) -> str:
    low, high = lut.latency_span
    return f"subnets of {low:.3f} to {high:.3f} ms"


def _medians(lut: QuantizedLUT, title: str, column: str) -> list[str]:
    hyperspace, c = lut.hyperspace, lut.columns
    lines = ["", f"{title:<16}" + "".join(f"{s.name:>9}" for s in hyperspace.searchable)]
    for b, option in enumerate(hyperspace.block_types):
        cells = (
            c[column][(c["stage"] == s) & (c["block"] == b)]
            for s in range(len(hyperspace.searchable))
        )
        lines.append(f"{option.type:<16}" + "".join(f"{np.median(v):>9.4f}" for v in cells))
    return lines
