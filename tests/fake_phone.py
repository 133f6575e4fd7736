"""A phone that is a folder, and an adb that is a script."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SERIAL = "R5CT"
# Pushes into the folder $PHONE, and runs there what would run on the phone. `state` there says what
# adb says of the phone, and `calls` is what it was asked. With -s it knows one phone.
_ADB = f"""#!/bin/sh
echo "$@" >> "$PHONE/calls"
[ "$1" = "-s" ] && {{
    [ "$2" = "{SERIAL}" ] || {{ echo "adb: device '$2' not found" >&2; exit 1; }}
    shift 2
}}
[ -f "$PHONE/state" ] && {{ cat "$PHONE/state" >&2; exit 1; }}
here() {{ echo "$1" | sed "s#/data/local/tmp#$PHONE/data/local/tmp#g"; }}
case "$1" in
get-state) echo device ;;
push)
    case "$2" in *refused*) echo "adb: error: failed to copy '$2'" >&2; exit 1;; esac
    cp "$2" "$(here "$3")" && echo "1 file pushed" ;;
shell)
    case "$2" in
    "getprop ro.product.manufacturer") echo Acme ;;
    "getprop ro.product.model") echo "Phone 7" ;;
    "getprop ro.soc.model") echo A123 ;;
    "cat /proc/cpuinfo") printf 'processor\\t: %s\\nFeatures\\t: fp asimd asimddp\\n' 0 1 ;;
    *) sh -c "$(here "$2")" ;;
    esac ;;
esac
"""


def executable(path: Path, text: str) -> Path:
    """A script."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_phone(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is the phone's root; its adb is the one on PATH."""
    folder, tools = place / "phone", place / "tools"
    (folder / "data/local/tmp").mkdir(parents=True)
    tools.mkdir()
    executable(tools / "adb", _ADB)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PHONE", str(folder))
    return folder


def calls(phone: Path) -> list[str]:
    """What adb was asked, and what the phone's programs wrote there."""
    return (phone / "calls").read_text().splitlines()
