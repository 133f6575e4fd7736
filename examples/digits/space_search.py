"""Search a space for digits as a `NasExperiment`: thousands are scored, the best become trials.

    python examples/digits/space_search.py

What the search needs and the job's work folder lacks is prepared first, which takes minutes.
NNI's web UI listens on all network interfaces, without login.
"""

import argparse
from pathlib import Path

from nni.nas.experiment import NasExperiment

from nni_spaceevo import HyperspaceModelSpace, SpaceEvo, SpaceScoreEvaluator
from nni_spaceevo.files import plain
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.prepare import constraints, prepared_lut
from nni_spaceevo.jobs.scoring import score_config


def main() -> None:
    """Prepare, search, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="of NNI's web UI")
    parser.add_argument("--evaluations", type=int, default=3000, help="spaces to score")
    parser.add_argument("--trials", type=int, default=10, help="most trials in the web UI")
    options = parser.parse_args()

    job = Job(Path(__file__).with_name("spaceevo.yaml"))
    config = score_config(job, constraints(job, prepared_lut(job)))
    scoring = {"lut": job.lut_path, "hyperspace": job.hyperspace, **plain(config)}
    strategy = SpaceEvo(
        **scoring, evaluations=options.evaluations, state=job.work / "space_search.json"
    )
    experiment = NasExperiment(
        HyperspaceModelSpace(job.hyperspace), SpaceScoreEvaluator(**scoring), strategy
    )
    experiment.config.experiment_name = "digits space search"
    experiment.config.max_trial_number = options.trials
    experiment.config.trial_concurrency = 2
    experiment.run(options.port)
    best = strategy.best
    print(f"best space {best.code}, Q-T score {best.score:.4f}")
    print(f"nnictl view {experiment.id} --port {options.port}  # from {Path.cwd()}")


if __name__ == "__main__":
    main()
