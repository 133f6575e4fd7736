"""How long a latency predictor takes to load and to predict, beside nn-Meter.

Times reading a predictor folder, predicting 1,000 subnets of one space and of 1,000 random spaces
(cold: no block was priced before; warm: all were), and nn-Meter's own predict of a few of the same
subnets as float ONNX with the same predictor exported to it; and how well the exported predictor
agrees with ours on subnets that it was not fitted to. Writes `predict_speed.json` beside
this script.

    python benchmarks/predict_speed.py [FOLDER]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from nni_spaceevo.errors import PredictorWarning
from nni_spaceevo.files import packed_folder, read_yaml, to_json, write_atomically
from nni_spaceevo.hyperspace import Hyperspace, load_hyperspace
from nni_spaceevo.latency import load_predictor
from nni_spaceevo.latency.nn_meter_export import NETWORKS_FITTED, export_nn_meter, nn_meter_onnx
from nni_spaceevo.latency.sampling import Network, network

PACKAGES = ("numpy", "scikit-learn", "nn-meter", "onnx")
SPACE = "onnxw-151122-023231"
SUBNETS, REPEATS = 1000, 5
NETWORKS_TIMED = 5


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best(work: Callable[[], Any]) -> float:
    """Least wall time of `REPEATS` calls, in seconds."""
    return round(min(seconds(work) for _ in range(REPEATS)), 4)


def subnets(hyperspace: Hyperspace, *, one_space: bool) -> list[Network]:
    """`SUBNETS` random subnets of one space, or each of a random space."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(SUBNETS):
        space = hyperspace.space(SPACE) if one_space else hyperspace.random_space(rng)
        found.append(network(hyperspace, space, hyperspace.random_subnet(space, rng)))
    return found


def predict_times(folder: Path, networks: Sequence[Network]) -> dict[str, float]:
    """Seconds to predict all networks, cold and warm."""
    chains = [n.placed for n in networks]
    predictors = [load_predictor(folder) for _ in range(REPEATS)]
    cold = [seconds(lambda p=p: p.network_ms(chains)) for p in predictors]
    return {
        "blocks": len({block for chain in chains for block in chain}),
        "cold_s": round(min(cold), 4),
        "warm_s": best(lambda: predictors[0].network_ms(chains)),
    }


def nn_meter_figures(folder: Path, networks: Sequence[Network]) -> dict[str, Any]:
    """What nn-Meter makes of the predictor exported to it.

    Returns
    -------
    times : seconds to load it and to predict a network
    agreement : its predictions against ours on held-out subnets, in percent
    """
    from nn_meter.predictor import nnMeterPredictor
    from nn_meter.predictor.utils import loading_customized_predictor

    logging.getLogger("nn-Meter").setLevel(logging.ERROR)
    predictor, hyperspace = load_predictor(folder), load_hyperspace("onnxw")
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "exported"
        report = export_nn_meter(predictor, hyperspace, output, networks=NETWORKS_FITTED)
        meta = read_yaml(output / "meta.yaml", dict)
        load_s = best(lambda: loading_customized_predictor(meta))
        meter = nnMeterPredictor(*loading_customized_predictor(meta))
        times = []
        for i, each in enumerate(networks[:NETWORKS_TIMED]):
            path = Path(place) / f"{i}.onnx"
            nn_meter_onnx(each.blocks, each.code.resolution, path)
            times.append(best(lambda path=path: meter.predict(str(path), "onnx")))
    agreement = {
        "activations as nn-Meter can see them": report.networks,
        "activations as exporters write them": report.networks_as_exported,
    }
    of_all = {"load_s": load_s, "networks": len(times), "per_network_s": float(np.median(times))}
    return {"times": of_all, "agreement": agreement}


def main() -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = packed_folder("latency_predictors") / "x86_vnni_ort_int8"
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", PredictorWarning)
    hyperspace = load_hyperspace("onnxw")
    one = subnets(hyperspace, one_space=True)
    nn_meter = nn_meter_figures(options.folder, one)
    times = {
        "load_s": best(lambda: load_predictor(options.folder)),
        f"{SUBNETS} subnets of {SPACE}": predict_times(options.folder, one),
        f"{SUBNETS} subnets of random spaces": predict_times(
            options.folder, subnets(hyperspace, one_space=False)
        ),
        "nn_meter": nn_meter["times"],
    }
    result = {
        **provenance(*PACKAGES),
        "predictor": load_predictor(options.folder).name,
        "times": times,
        "nn_meter_agreement": nn_meter["agreement"],
    }
    write_atomically(options.output, to_json(result))
    print(to_json(result))


if __name__ == "__main__":
    main()
