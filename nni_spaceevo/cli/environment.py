"""Verbs about this machine and its NNI: `doctor` and `register`."""

from __future__ import annotations

import argparse

from .common import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    verb = verbs.add_parser("doctor", help="what this machine lacks, and what to know")
    verb.set_defaults(run=_doctor)

    verb = verbs.add_parser("register", help="make NNI know our tuners")
    verb.add_argument("--undo", action="store_true", help="make NNI forget it")
    verb.set_defaults(run=_register)


def _doctor(options: argparse.Namespace) -> int:
    from ..plugin.doctor import diagnose, show

    findings = diagnose()
    print(show(findings))
    return 0 if all(f.ok for f in findings) else 1


def _register(options: argparse.Namespace) -> None:
    from ..plugin.registration import register, unregister

    print(unregister() if options.undo else register())
