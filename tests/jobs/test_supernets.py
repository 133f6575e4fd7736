"""A job's supernets: which space, by which seed, continued, and shown by TensorBoard."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from nni_spaceevo.errors import CheckpointError, CodeError, ConfigError
from nni_spaceevo.files import to_yaml
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.results import ScoredSpace, SearchResults
from nni_spaceevo.jobs.supernets import TrainedSupernet, chosen_space, load_trained, train_supernet
from nni_spaceevo.testing import synthetic_hyperspace

from .small_job import SPACE, write_small_job


def searched(job: Job, *scores: tuple[str, float]) -> None:
    """Leave a search with such scores behind."""
    SearchResults(
        schema=1,
        hyperspace=job.hyperspace.name,
        hyperspace_fingerprint=job.hyperspace.fingerprint,
        experiment="local",
        constraints_ms=(1.0,),
        spaces=tuple(ScoredSpace(space=s, score=v, metrics={}) for s, v in scores),
    ).save(job.search_path)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads from a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags}


def test_the_file_is_the_int8_supernet_of_the_space(trained: tuple[Job, TrainedSupernet]) -> None:
    from nni_spaceevo.supernet.weights import load_supernet

    job, found = trained
    supernet = load_supernet(found.path, job.hyperspace, SPACE)
    assert supernet.image.enabled
    assert (found.space, found.seed) == (SPACE, 0)
    assert [e.precision for e in found.epochs] == ["fp32", "int8"]
    assert found.epochs[-1].outcome.startswith("epoch 2, int8: loss ")
    assert "; FP32 accuracy " in found.epochs[-1].outcome
    assert "; INT8 accuracy " in found.epochs[-1].outcome


def test_tensorboard_shows_each_epoch_once_however_often_training_is_continued(
    trained: tuple[Job, TrainedSupernet], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nni_spaceevo.supernet.trainer import SupernetTrainer

    job, found = trained
    monkeypatch.setattr(SupernetTrainer, "step", lambda *_: pytest.fail("trained again"))
    seen: list[Any] = []
    assert train_supernet(job, SPACE, report=seen.append) == found
    assert seen == list(found.epochs)
    shown = scalars(found.path.parent / f"{SPACE}.tensorboard")
    first, last = found.epochs
    assert last.int8 is not None
    for tag, expected in {
        "loss_fp32/largest": [(1, first.largest)],
        "loss_int8/random": [(2, last.random)],
        "accuracy_int8/smallest": [(2, last.int8.smallest)],
    }.items():
        assert shown[tag] == [(step, pytest.approx(value)) for step, value in expected]
    assert [step for step, _ in shown["accuracy_fp32/random"]] == [1, 2]


def test_without_tensorboard_a_line_says_so_and_training_goes_on(
    trained: tuple[Job, TrainedSupernet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    job, found = trained
    assert train_supernet(job, SPACE, scalars=tmp_path / "none") == found
    assert "pip install 'nni_spaceevo[tensorboard]'" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_another_seed_is_another_supernet(trained: tuple[Job, TrainedSupernet]) -> None:
    job, found = trained
    other = train_supernet(job, SPACE, seed=7)
    assert other is not None
    assert other.seed == 7
    assert other.path != found.path
    assert other.epochs != found.epochs


def test_other_settings_are_refused_by_name(trained: tuple[Job, TrainedSupernet]) -> None:
    job, _ = trained
    path = job.path.with_name("other.yaml")
    content = job.path.read_text().replace("batch_size: 448", "batch_size: 449")
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"supernet\.batch_size 448, expected 449"):
        train_supernet(Job(path), SPACE)
    message = r"trained with other images or settings .*supernet\.batch_size 448, expected 449"
    with pytest.raises(CheckpointError, match=message):
        load_trained(Job(path), job.hyperspace.space(SPACE))
    # How it is judged is nothing that it was trained with.
    path.write_text(
        job.path.read_text().replace("recalibration_batches: 1", "recalibration_batches: 2")
    )
    load_trained(Job(path), job.hyperspace.space(SPACE))


def test_what_is_said_to_type_names_job_and_seed(tmp_path: Path) -> None:
    job = write_small_job(tmp_path)
    command = f"spaceevo train --job {job.path} --space {SPACE} --seed 3`"
    with pytest.raises(ConfigError, match=re.escape(command)):
        load_trained(job, job.hyperspace.space(SPACE), seed=3)


def test_best_is_the_best_space_of_the_search(tmp_path: Path) -> None:
    job = write_small_job(tmp_path)
    with pytest.raises(ConfigError, match=r"space 'best': no .*search\.json; search first"):
        chosen_space(job, "best")
    searched(job, ("synthetic-000-000", 0.5), (SPACE, 0.7))
    assert str(chosen_space(job, "best")) == SPACE
    other = synthetic_hyperspace(3)
    (tmp_path / "hyperspace.yaml").write_text(
        to_yaml(other).replace("name: synthetic", "name: renamed")
    )
    with pytest.raises(ConfigError, match="no scored spaces of the hyperspace 'renamed'"):
        chosen_space(Job(job.path), "best")


def test_a_code_of_another_hyperspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="onnxw"):
        train_supernet(write_small_job(tmp_path), "onnxw-151122-023231")


def test_a_seed_within_the_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"spaceevo\.yaml: supernet: seed is the job's"):
        write_small_job(tmp_path, supernet={"seed": 3})
