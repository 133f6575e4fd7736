"""Codes: the currency in which spaces and subnets are written, compared and exchanged.

A space is `<hyperspace>-<block types>-<width windows>`, one digit a searchable stage, as in the
authors' release (`onnxw-151122-023231`). A subnet is `d…_k…_w…_e…_r…`: depths of the stages, then
kernel size, width and expand ratio of every block, then the resolution.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import CodeError

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
NAME = re.compile(r"[A-Za-z][\w.]*")
_SPACE = re.compile(rf"({NAME.pattern})-([0-9a-z]+)-([0-9a-z]+)")
_SUBNET = re.compile(r"d([^_]*)_k([^_]*)_w([^_]*)_e([^_]*)_r(\d+)")


# NNI keeps weak references to what a model space is frozen to.
@dataclass(frozen=True, order=True, slots=True, weakref_slot=True)
class SpaceCode:
    """One search space: a block type and a width window for every searchable stage.

    Attributes
    ----------
    hyperspace : name of the hyperspace
    blocks, windows : indices into its block types and into each stage's windows
    """

    hyperspace: str
    blocks: tuple[int, ...]
    windows: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.windows):
            raise CodeError(
                f"space of {self.hyperspace!r}: {len(self.blocks)} block types and "
                f"{len(self.windows)} width windows; expected one of each per stage"
            )
        if not all(0 <= i < len(DIGITS) for i in (*self.blocks, *self.windows)):
            raise CodeError(f"space of {self.hyperspace!r}: indices must be 0 to {len(DIGITS) - 1}")

    @classmethod
    def parse(cls, text: str) -> SpaceCode:
        """Read a code such as `onnxw-151122-023231`; raises `CodeError`."""
        match = _SPACE.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise CodeError(
                f"space code {text!r}: expected <hyperspace>-<block types>-<width windows>"
            )
        name, blocks, windows = match.groups()
        return cls(name, tuple(map(DIGITS.index, blocks)), tuple(map(DIGITS.index, windows)))

    def __str__(self) -> str:
        blocks, windows = ("".join(DIGITS[i] for i in v) for v in (self.blocks, self.windows))
        return f"{self.hyperspace}-{blocks}-{windows}"


@dataclass(frozen=True, order=True, slots=True)
class BlockChoice:
    """What a subnet chooses for one block; `expand` is 0.0 for block types without a ratio."""

    kernel_size: int
    width: int
    expand: float

    @property
    def expand_or_none(self) -> float | None:
        """The expand ratio as block recipes want it."""
        return self.expand or None


Chain = tuple[BlockChoice, ...]


def parse_chain(text: str) -> Chain:
    """Read a sub-stage `k#w#e_k#w#e…` as LUT files write it (`None` or 0: no expand ratio)."""
    try:
        rows = [part.split("#") for part in text.strip().split("_")]
        return tuple(
            BlockChoice(int(k), int(w), 0.0 if e == "None" else _finite(e)) for k, w, e in rows
        )
    except (ValueError, AttributeError):
        raise CodeError(f"sub-stage {text!r}: expected k#w#e_k#w#e…") from None


def format_chain(chain: Chain) -> str:
    """Write a sub-stage as the LUT files do; inverse of `parse_chain`."""
    return "_".join(f"{b.kernel_size}#{b.width}#{b.expand_or_none}" for b in chain)


def _finite(text: str) -> float:
    # NaN would make a code that does not equal itself.
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


@dataclass(frozen=True, order=True, slots=True)
class SubnetCode:
    """One subnet: the blocks of every elastic stage (stem to last stage) and the resolution."""

    stages: tuple[Chain, ...]
    resolution: int

    @classmethod
    def parse(cls, text: str) -> SubnetCode:
        """Read a code such as `d1#1_k3#3_w16#32_e0#1.0_r160`; raises `CodeError`."""
        match = _SUBNET.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise CodeError(f"subnet code {text!r}: expected d…_k…_w…_e…_r…")
        try:
            depths, kernels, widths = ([int(v) for v in match[i].split("#")] for i in (1, 2, 3))
            expands = [_finite(v) for v in match[4].split("#")]
            resolution = int(match[5])
        except ValueError:
            raise CodeError(
                f"subnet code {text!r}: depths, kernels, widths and expands must be numbers"
            ) from None
        if min(depths) < 0:
            raise CodeError(f"subnet code {text!r}: depths must not be negative, given {depths}")
        counts = {"d": sum(depths), "k": len(kernels), "w": len(widths), "e": len(expands)}
        if len(set(counts.values())) != 1:
            raise CodeError(f"subnet code {text!r}: block counts differ: {counts}")
        blocks = iter(BlockChoice(*row) for row in zip(kernels, widths, expands, strict=True))
        return cls(tuple(tuple(next(blocks) for _ in range(d)) for d in depths), resolution)

    def __str__(self) -> str:
        blocks = [b for stage in self.stages for b in stage]
        expands = ("0" if b.expand == 0 else repr(float(b.expand)) for b in blocks)
        parts = (
            ("d", (len(s) for s in self.stages)),
            ("k", (b.kernel_size for b in blocks)),
            ("w", (b.width for b in blocks)),
            ("e", expands),
        )
        return (
            "_".join(letter + "#".join(map(str, values)) for letter, values in parts)
            + f"_r{self.resolution}"
        )
