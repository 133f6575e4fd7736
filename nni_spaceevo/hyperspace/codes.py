"""Codes: the currency in which spaces and subnets are written, compared and exchanged.

A space is `<hyperspace>-<block types>-<width windows>`, one digit a searchable stage, as in the
authors' release (`onnxw-151122-023231`). A subnet is `d…_k…_w…_e…_r…`: depths of the stages, then
kernel size, width and expand ratio of every block, then the resolution.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import CodeError

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_SPACE = re.compile(r"([A-Za-z][\w.]*)-([0-9a-z]+)-([0-9a-z]+)")
_SUBNET = re.compile(r"d([^_]*)_k([^_]*)_w([^_]*)_e([^_]*)_r(\d+)")


@dataclass(frozen=True, order=True, slots=True)
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
        if not all(0 <= i < len(_DIGITS) for i in (*self.blocks, *self.windows)):
            raise CodeError(
                f"space of {self.hyperspace!r}: indices must be 0 to {len(_DIGITS) - 1}"
            )

    @classmethod
    def parse(cls, text: str) -> SpaceCode:
        """Read a code such as `onnxw-151122-023231`; raises `CodeError`."""
        match = _SPACE.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise CodeError(
                f"space code {text!r}: expected <hyperspace>-<block types>-<width windows>"
            )
        name, blocks, windows = match.groups()
        return cls(name, tuple(map(_DIGITS.index, blocks)), tuple(map(_DIGITS.index, windows)))

    def __str__(self) -> str:
        blocks, windows = ("".join(_DIGITS[i] for i in v) for v in (self.blocks, self.windows))
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
    """Read a sub-stage `k#w#e_k#w#e…` (`None` or 0 for no expand ratio), the LUT files' notation."""
    try:
        rows = [part.split("#") for part in text.strip().split("_")]
        return tuple(
            BlockChoice(int(k), int(w), 0.0 if e == "None" else float(e)) for k, w, e in rows
        )
    except ValueError:
        raise CodeError(f"sub-stage {text!r}: expected k#w#e_k#w#e…") from None


def format_chain(chain: Chain) -> str:
    """Write a sub-stage as the LUT files do; inverse of `parse_chain`."""
    return "_".join(f"{b.kernel_size}#{b.width}#{b.expand:g}" for b in chain)


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
            expands = [float(v) for v in match[4].split("#")]
        except ValueError:
            raise CodeError(
                f"subnet code {text!r}: depths, kernels, widths and expands must be numbers"
            ) from None
        counts = {"d": sum(depths), "k": len(kernels), "w": len(widths), "e": len(expands)}
        if len(set(counts.values())) != 1:
            raise CodeError(f"subnet code {text!r}: block counts differ: {counts}")
        blocks = iter(BlockChoice(*row) for row in zip(kernels, widths, expands, strict=True))
        return cls(tuple(tuple(next(blocks) for _ in range(d)) for d in depths), int(match[5]))

    def __str__(self) -> str:
        blocks = [b for stage in self.stages for b in stage]
        expands = ("0" if b.expand == 0 else repr(b.expand) for b in blocks)
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
