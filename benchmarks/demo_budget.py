"""Where the demo's minutes and peak memory go, step by step.

Runs `spaceevo demo` in a new folder and, once a second, adds up the memory of all processes of this
environment (the demo, its workers, NNI's manager, tuner and trials). Writes `demo_budget.json`
and the report's picture, `demo_budget.png`, beside this script.

    python benchmarks/demo_budget.py
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from provenance import provenance

from nni_spaceevo.files import to_json, write_atomically

PACKAGES = ("nni", "torch", "onnxruntime", "numpy", "scikit-learn")


def environment_memory_mb() -> float:
    """Memory of all processes started from this Python environment, but this one."""
    total = 0
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = process.info["cmdline"] or [""]
        if process.info["pid"] != os.getpid() and command[0].startswith(sys.prefix):
            try:
                # Shared pages, torch's libraries above all, are counted once a process uses them.
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    return total / 2**20


def run_demo(folder: Path, port: int) -> tuple[float, list[tuple[str, float, float]]]:
    """Run the demo; returns its seconds, and (step, seconds, peak MB) of each step."""
    seconds_file = folder / "work" / "seconds.json"
    command = [sys.executable, "-m", "nni_spaceevo.cli", "demo"]
    command += ["--folder", str(folder), "--port", str(port), "--stop"]
    start, peak, steps = time.monotonic(), 0.0, []
    process = subprocess.Popen(command)
    while process.poll() is None:
        time.sleep(1)
        now = environment_memory_mb()
        peak = max(peak, now)
        done = json.loads(seconds_file.read_text()) if seconds_file.is_file() else {}
        for step in list(done)[len(steps) :]:
            steps.append((step, float(done[step]), peak))
            peak = now
    if process.returncode:
        raise SystemExit(f"the demo failed with exit code {process.returncode}")
    return time.monotonic() - start, steps


def main() -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        total, steps = run_demo(Path(place) / "digits", options.port)
        work = Path(place) / "digits" / "work"
        report = json.loads((work / "report" / "report.json").read_text())
        shutil.copy(work / "report" / "report.png", Path(__file__).with_suffix(".png"))
        predictors = (work / "latency_predictors").glob("*/report.json")
        accuracy = {p.parent.name: json.loads(p.read_text()) for p in predictors}
    result = {
        **provenance(*PACKAGES),
        "total_seconds": round(total, 1),
        "steps": [
            {"step": name, "seconds": seconds, "peak_mb": round(mb)} for name, seconds, mb in steps
        ],
        "report": report,
        "predictor_reports": accuracy,
    }
    write_atomically(Path(__file__).with_suffix(".json"), to_json(result))
    print(f"{'step':<28}{'seconds':>9}{'peak MB':>9}")
    for name, seconds, mb in steps:
        print(f"{name:<28}{seconds:>9.1f}{mb:>9.0f}")
    print(f"{'whole demo':<28}{total:>9.1f}{max(mb for *_, mb in steps):>9.0f}")


if __name__ == "__main__":
    main()
