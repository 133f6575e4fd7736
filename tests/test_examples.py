"""Every example says what the package reads: jobs, NNI experiments, spaces."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from nni_spaceevo.files import packed_folder
from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.supernets import BEST
from nni_spaceevo.latency.devices import device_names
from nni_spaceevo.plugin import subnet_tuner
from nni_spaceevo.plugin.distill_tuner import TRIAL_COMMAND, check_tasks
from nni_spaceevo.plugin.export_trial import FileParameters

EXAMPLES = packed_folder("examples")
JOBS = sorted([*EXAMPLES.glob("*/spaceevo.yaml"), *EXAMPLES.glob("*/chain.yaml")])
EXPERIMENTS = sorted(EXAMPLES.glob("*/*.yml"))


def name(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


@pytest.mark.parametrize("path", JOBS, ids=name)
def test_a_job_reads(path: Path) -> None:
    job = Job(path)
    assert job.hyperspace.num_spaces > 10_000
    assert job.config.supernet.fp32.epochs > job.config.supernet.int8.epochs > 0


def test_the_imagenet_job_is_the_published_recipe() -> None:
    from nni_spaceevo.distill.config import DistillConfig
    from nni_spaceevo.supernet.config import SupernetConfig

    config = Job(EXAMPLES / "imagenet" / "spaceevo.yaml").config
    published = SupernetConfig(batch_size=512, mixed_precision=True)
    assert config.supernet == published
    assert config.distill == DistillConfig(mixed_precision=True)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_nni_takes_an_experiment_and_so_does_what_it_starts(path: Path) -> None:
    from nni.experiment.config import ExperimentConfig

    experiment = ExperimentConfig.load(path)
    job = Job(path.parent / "spaceevo.yaml")
    given = experiment.search_space
    command = str(experiment.trial_command)
    assert command.endswith(" --job spaceevo.yaml")
    if command.startswith(TRIAL_COMMAND):
        check_tasks(job.hyperspace, given)
    elif kind := next((kind for kind in GRIDS if f"{kind}_trial" in command), None):
        GRIDS[kind](job.hyperspace, given)
        values = [parameter["_value"] for parameter in given.values()]
        assert experiment.max_trial_number == len([*itertools.product(*values)])
    elif command.startswith(subnet_tuner.TRIAL_COMMAND):
        subnet_tuner.check_nothing_to_choose(given)
    else:
        assert given == job.hyperspace.search_space()


Given = dict[str, dict[str, list[str]]]


def _check_spaces(hyperspace: Hyperspace, given: Given) -> None:
    assert given.keys() <= {"space", "seed"}
    for space in given["space"]["_value"]:
        assert space == BEST or str(hyperspace.space(space)) == space


def _check_devices(hyperspace: Hyperspace, given: Given) -> None:
    assert given.keys() == {"device"}
    assert set(given["device"]["_value"]) <= set(device_names())


def _check_subnets(hyperspace: Hyperspace, given: Given) -> None:
    assert given.keys() <= set(FileParameters.__struct_fields__)
    assert set(given["subnet"]["_value"]) <= {"smallest", "largest", "seqnet1"}


# Experiments whose trials are all combinations of their parameters.
GRIDS = {
    "supernet": _check_spaces,
    "profile": _check_devices,
    "export": _check_subnets,
    "bench": _check_subnets,
}


def test_the_chain_has_a_step_and_an_experiment_for_each_part_of_the_way() -> None:
    chain = (EXAMPLES / "fashion_mnist" / "chain.py").read_text()
    names = {path.stem for path in (EXAMPLES / "fashion_mnist").glob("*.yml")}
    # The tuner of distill.yml builds the LUT.
    for step in ("profile", "distill", "search", "supernet", "subnets", "export", "bench"):
        assert f"def {step}(job: Job" in chain
        assert {"search": "search_space"}.get(step, step) in names
