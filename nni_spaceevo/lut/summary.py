"""A LUT in words and two small tables."""

from __future__ import annotations

import numpy as np

from .table import QuantizedLUT


def format_lut(lut: QuantizedLUT) -> str:
    """Where a LUT comes from, and medians of loss and latency by block type and stage."""
    header, unpriced = lut.header, not lut.header.device
    other = ", ".join(f"{resolution}: {ms:.4g} ms" for resolution, ms in header.other_ms.items())
    facts = {
        "hyperspace": f"{header.hyperspace} ({header.hyperspace_fingerprint})",
        "teacher": header.teacher,
        "made with": header.made_with,
        "device": f"{header.device} ({header.device_fingerprint})" if not unpriced else "unpriced",
        "stem and head": f"{other}; {header.other_ms_source}" if other else "",
        "rows": f"{len(lut)}, {_subnets(lut)}" if not unpriced else str(len(lut)),
    }
    lines = [f"{name:<14} {value}" for name, value in facts.items() if value]
    lines += _medians(lut, "median NSR loss", "loss")
    lines += [] if unpriced else _medians(lut, "median ms", "latency_ms")
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
