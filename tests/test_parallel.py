"""A batch in several processes: the same statistics, losses and gradients as in one."""

from pathlib import Path

import parallel_parts
import pytest
import torch
from several_processes import torchrun

from nni_spaceevo.errors import TrainingError
from nni_spaceevo.parallel import ALONE, Ranks, joined

RANKS = 3
# Of one image each, in every process; the others are of the whole batch and the same in all.
OF_IMAGES = ("y", "x gradient", "quantized", "narrow")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of three processes sees, the batch of two images with none for the first."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(RANKS, parallel_parts.__file__, str(folder), cwd=Path(__file__).parent)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.slow
@pytest.mark.parametrize("images", parallel_parts.IMAGES)
def test_processes_see_what_one_process_sees(found, images):
    whole = parallel_parts.results(ALONE, images)
    for key, expected in whole.items():
        if key in OF_IMAGES:
            parts = [torch.cat([one[images][key] for one in found])]
        else:
            parts = [one[images][key] for one in found]
        for part in parts:
            torch.testing.assert_close(part, expected, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
def test_the_first_process_tells_the_others_its_number(found):
    assert [one["first"] for one in found] == [5, 5, 5]


@pytest.mark.slow
def test_processes_with_different_states_go_no_further(found):
    for one in found:
        assert "the stage: process 2 of 3 has another state than process 0" in one["refused"]


@pytest.mark.parametrize(("images", "size"), [(7, 3), (8, 2), (2, 3), (64, 5)])
def test_parts_are_all_images_once_and_almost_equal(images, size):
    parts = [list(range(images))[Ranks(rank, size).part(images)] for rank in range(size)]
    assert [image for part in parts for image in part] == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_asked_of_others():
    with joined(torch.device("cpu")) as ranks, ranks.sharing(3):
        assert ranks == ALONE
        assert ranks.total(torch.ones(2)).tolist() == [1, 1]
        assert ranks.from_first(4) == 4
        ranks.wait()
        ranks.require_same("this", "the stage")


def test_processes_that_cannot_meet_are_one_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(TrainingError, match=r"2 processes of this task do not meet .*torchrun"),
        joined(torch.device("cpu")),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "raise SystemExit(3)"])
def test_nothing_of_it_goes_on_when_a_task_has_ended(end, tmp_path):
    """A thread of gloo's that is left may abort the process when the interpreter is gone."""
    (tmp_path / "task.py").write_text(f"""
import os, torch
from nni_spaceevo.parallel import joined

def note_threads(file):
    count = len(os.listdir("/proc/self/task"))
    open(file + os.environ["RANK"], "w").write(str(count))

try:
    with joined(torch.device("cpu")) as ranks:
        import torch._dynamo  # as torch's optimizers do, while the processes are joined
        ranks.wait()
        note_threads("joined")
        {end or "pass"}
except SystemExit:
    pass
note_threads("ended")
""")
    torchrun(2, "task.py", cwd=tmp_path)
    for rank in range(2):
        assert int((tmp_path / f"joined{rank}").read_text()) > 1
        assert int((tmp_path / f"ended{rank}").read_text()) == 1
