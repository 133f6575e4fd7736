"""The whole way on FashionMNIST, and whether the searched space beats manually designed ones.

Does the steps of `make fashion` that are not done yet, and collects what they have left: every
subnet with its accuracy and its measured latency, and the seconds of each step. Writes
`fashion_chain.json`, `.md` (the comparison's report) and `.png` beside this script.

    python benchmarks/fashion_chain.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from outcome import write_outcome
from provenance import provenance

from nni_spaceevo.files import packed_folder, plain, read_json
from nni_spaceevo.jobs.comparison import Comparison
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.results import SearchResults
from nni_spaceevo.reports.comparison_report import conclusions

EXAMPLE = packed_folder("examples") / "fashion_mnist"
PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")


def collected(job: Job) -> dict[str, Any]:
    """What the steps of a job have left, as plain data."""
    found = read_json(job.comparison_path / "comparison.json", Comparison)
    comparison = plain(found)
    for entry in comparison["entries"]:
        # Where the files were on this machine says nothing.
        entry["measured"]["file"] = Path(entry["measured"]["file"]).name
    return {
        "seconds": read_json(job.work / "seconds.json", dict[str, float]),
        "search": plain(SearchResults.load(job.search_path).best),
        "conclusions": conclusions(found),
        "comparison": comparison,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--job", type=Path, default=EXAMPLE / "chain.yaml", help="job file")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options, others = parser.parse_known_args(arguments)
    command = [sys.executable, str(EXAMPLE / "chain.py"), "--job", str(options.job), *others]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(1)
    job = Job(options.job)
    result = {**provenance(*PACKAGES), **collected(job)}
    picture = (job.comparison_path / "comparison.png").read_bytes()
    report = (job.comparison_path / "report.md").read_text(encoding="utf-8")
    shown = report.rstrip().replace("comparison.png", options.output.with_suffix(".png").name)
    write_outcome(options.output, result, shown, picture)


if __name__ == "__main__":
    main()
