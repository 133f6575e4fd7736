"""Checkpoints: tensors and plain data, written whole or not at all, read without pickle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import write_atomically

SCHEMA = 1


def save_checkpoint(path: Path, made_for: str, content: dict[str, Any]) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    path : file to write
    made_for : fingerprint of what the contents belong to, checked when read
    content : state dicts, tensors and plain data
    """
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, "made_for": made_for, "content": content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, made_for: str) -> dict[str, Any]:
    """Read a checkpoint's contents.

    Raises
    ------
    CheckpointError
        Truncated or altered, of another schema, or made for something else; names the file.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here; each means an unreadable file
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: truncated or not a checkpoint ({reason}); delete it to start this step anew"
        ) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: not a checkpoint of schema {SCHEMA}")
    if data["made_for"] != made_for:
        raise CheckpointError(
            f"{path}: made for other settings ({data['made_for']}, expected {made_for}); "
            "delete it, or use another work folder"
        )
    return data["content"]
