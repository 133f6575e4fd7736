"""What a further device costs once there is a LUT: `spaceevo lut price` on the published LUTs.

Imports both published LUTs (132,000 and 210,000 sub-stages, priced for a Xeon and for a Pixel 4),
then takes their latencies from another device's predictor: the whole command, start-up included,
and its parts within one process. Writes `lut_price.json` beside this script.

    python benchmarks/lut_price.py PUBLISHED [--predictor NAME]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from provenance import provenance

from nni_spaceevo.errors import PredictorWarning
from nni_spaceevo.files import to_json, write_atomically
from nni_spaceevo.latency import find_predictor, load_predictor
from nni_spaceevo.lut import QuantizedLUT

LUTS = {"onnxw": "xeon_vnni_ort_int8", "mobilew": "pixel4_tflite_int8"}
REPEATS = 5
T = TypeVar("T")


def command(*arguments: str) -> dict[str, float]:
    """Seconds of a `spaceevo lut` command, start-up included, and what they took of the CPU."""
    start = time.perf_counter()
    whole = [sys.executable, "-m", "nni_spaceevo.cli", "lut", *arguments]
    process = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(whole)}")
    seconds, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}


def least(runs: list[dict[str, float]]) -> dict[str, float]:
    """Least of each figure."""
    return {name: min(run[name] for run in runs) for name in runs[0]}


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def parts(path: Path, predictor: str, output: Path) -> dict[str, float]:
    """Seconds of reading predictor and LUT, pricing it and writing it, in one process."""
    device_s, device = timed(lambda: load_predictor(find_predictor(predictor)))
    load_s, lut = timed(lambda: QuantizedLUT.load(path))
    price_s, priced = timed(lambda: lut.priced(device))
    save_s, _ = timed(lambda: priced.save(output))
    if not np.array_equal(priced.columns["loss"], lut.columns["loss"]):
        raise SystemExit(f"{path}: pricing changed losses")
    found = {"predictor": device_s, "load": load_s, "price": price_s, "save": save_s}
    return {name: round(seconds, 3) for name, seconds in found.items()}


def one(name: str, published: Path, predictor: str, folder: Path) -> dict[str, Any]:
    """Seconds for one published LUT, least of several runs: others may use the machine too."""
    path, output = folder / f"{name}.lut", folder / f"{name}-priced.lut"
    source = published / f"block_lut_{name}.csv.gz"
    to = ["--predictor", LUTS[name], "--output", str(path)]
    imported = command("import", str(source), "--hyperspace", name, *to)
    price = ["price", str(path), "--predictor", predictor, "--output", str(output)]
    return {
        "rows": len(QuantizedLUT.load(path)),
        "from": LUTS[name],
        "import": imported,
        "price": least([command(*price) for _ in range(REPEATS)]),
        "parts_s": least([parts(path, predictor, output) for _ in range(REPEATS)]),
    }


def main() -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("published", type=Path, help="folder of the published LUTs")
    parser.add_argument("--predictor", default="x86_vnni_ort_int8", help="of the further device")
    options = parser.parse_args()
    warnings.simplefilter("ignore", PredictorWarning)
    with tempfile.TemporaryDirectory() as place:
        found = {n: one(n, options.published, options.predictor, Path(place)) for n in LUTS}
    result = {
        **provenance("numpy"),
        "to": options.predictor,
        "luts": found,
    }
    write_atomically(Path(__file__).with_suffix(".json"), to_json(result))
    print(to_json(found))


if __name__ == "__main__":
    main()
