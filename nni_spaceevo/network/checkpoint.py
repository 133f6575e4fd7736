"""Checkpoints: tensors and plain data, written whole or not at all, read without pickle."""

from __future__ import annotations

import io
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ..errors import CheckpointError, first_line
from ..files import write_atomically

SCHEMA = 1
_SHOWN = 3
# What a checkpoint belongs to: a fingerprint, or several by name, of which those that differ can be
# told.
MadeFor: TypeAlias = str | Mapping[str, str]


def settings(section: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Settings as parts of a `MadeFor`: `distill.epochs_fp32` and so on."""
    return {f"{section}.{key}": str(value) for key, value in values.items()}


def save_checkpoint(path: Path, made_for: MadeFor, content: dict[str, Any]) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    path : file to write
    made_for : what the contents belong to, checked when read
    content : state dicts, tensors and plain data

    Raises
    ------
    FileAccessError
        The folder cannot be written or the disk is full; the old file is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, "made_for": made_for, "content": content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(
    path: Path, made_for: MadeFor, apart_from: Container[str] = ()
) -> dict[str, Any]:
    """Read a checkpoint's contents, onto the CPU.

    Parameters
    ----------
    path, made_for : as for `save_checkpoint`
    apart_from : names of `made_for` that may differ

    Raises
    ------
    CheckpointError
        Truncated or altered, of another schema, or made for something else; names the file, and
        what differs.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here; each means an unreadable file
        raise CheckpointError(
            f"{path}: truncated or not a checkpoint ({first_line(error)}); delete it to start this "
            "step anew"
        ) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: not a checkpoint of schema {SCHEMA}")
    given, expected = (_without(parts, apart_from) for parts in (data["made_for"], made_for))
    if given != expected:
        raise CheckpointError(
            f"{path}: made for other settings ({difference(given, expected)}); "
            "delete it, or use another work folder"
        )
    return data["content"]


def _without(parts: MadeFor, names: Container[str]) -> MadeFor:
    if isinstance(parts, str):
        return parts
    return {name: value for name, value in parts.items() if name not in names}


def difference(given: MadeFor, expected: MadeFor) -> str:
    """What differs between two, in a few words."""
    if isinstance(given, str) and isinstance(expected, str):
        return f"{given}, expected {expected}"
    if isinstance(given, str) or isinstance(expected, str):
        return "by another version of this package"
    keys = [k for k in {**expected, **given} if given.get(k) != expected.get(k)]
    told = [f"{k} {given.get(k, 'unknown')}, expected {expected.get(k, 'none')}" for k in keys]
    return "; ".join(told[:_SHOWN] + ["…"] * (len(told) > _SHOWN))
