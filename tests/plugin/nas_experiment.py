"""A user's script with a `NasExperiment`, in a process of its own: what it does is its argument.

It writes `result.json` when the search is over, and stops the experiment when `stop` appears.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from nni.nas.experiment import NasExperiment, NasExperimentConfig

from nni_spaceevo import HyperspaceModelSpace, SpaceEvo, SpaceScoreEvaluator
from nni_spaceevo.files import write_atomically
from nni_spaceevo.testing import synthetic_hyperspace

SCORING: dict[str, Any] = {
    "lut": "synthetic.lut",
    "constraints_ms": [1.5, 2.0],
    "hyperspace": synthetic_hyperspace(),
    "samples": 2000,
}
SETTINGS: dict[str, Any] = {**SCORING, "population_size": 20, "sample_size": 6}


def make_experiment(options: dict[str, Any], strategy: SpaceEvo) -> NasExperiment:
    """The experiment that the options describe."""
    space = HyperspaceModelSpace(SCORING["hyperspace"])
    config = NasExperimentConfig(options["engine"], "simplified", "local")
    config.trial_concurrency = options.get("concurrency", 1)
    config.max_trial_number = options.get("most")
    evaluator = SpaceScoreEvaluator(**SCORING)
    return NasExperiment(space, evaluator, strategy, config=config, id=options["id"])


def main() -> None:
    """Run the experiment that the argument describes as JSON."""
    options = json.loads(sys.argv[1])
    parent = os.getppid()
    strategy = SpaceEvo(**SETTINGS, **options["strategy"])
    experiment = make_experiment(options, strategy)
    (experiment.resume if options.get("resume") else experiment.run)(options["port"])
    top = experiment.export_top_models(1, formatter="instance")
    result = {"top": str(top[0]), "best": str(strategy.best.code)}
    write_atomically(Path("result.json"), json.dumps(result))
    while not Path("stop").exists() and os.getppid() == parent:
        time.sleep(0.1)
    experiment.stop()


if __name__ == "__main__":
    main()
