"""Work in several processes: a task that fails, or a process that dies, takes nothing with it."""

import os
import signal
import time

import pytest

from nni_spaceevo.errors import ConfigError, TrainingError
from nni_spaceevo.jobs.workers import failure, in_workers

pytestmark = pytest.mark.filterwarnings("error")


def work(number):
    """What the processes do."""
    if number == 1:
        raise ConfigError("one is odd")
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        raise ZeroDivisionError("no three")
    return number, os.environ["LOCAL_RANK"], os.getpid()


@pytest.fixture(scope="module")
def outcomes():
    return dict(in_workers(work, range(8), 2))


def test_all_that_can_be_done_is_done(outcomes):
    assert set(outcomes) == set(range(8))
    for number in (0, 4, 5, 6, 7):
        assert outcomes[number][0] == number


def test_each_process_has_a_number_of_its_own_and_goes_on_after_an_error(outcomes):
    done = [found[1:] for found in outcomes.values() if not isinstance(found, Exception)]
    assert {number for number, _ in done} <= {"0", "1"}
    # Two, and the one in place of the one that died.
    assert len({pid for _, pid in done}) <= 3


def local_rank(number):
    """The number of the device that is the process's."""
    time.sleep(0.5)
    return os.environ["LOCAL_RANK"]


def test_processes_share_devices_by_turns():
    assert sorted(dict(in_workers(local_rank, range(4), 4, 2)).values()) == ["0", "0", "1", "1"]


def test_what_failed_says_why(outcomes):
    assert isinstance(outcomes[1], ConfigError)
    assert str(outcomes[1]) == "one is odd"
    assert isinstance(outcomes[2], TrainingError)
    assert "its process was killed" in str(outcomes[2])
    assert isinstance(outcomes[3], ZeroDivisionError)


def test_one_error_names_all_tasks_and_a_reason_once():
    same = ConfigError("no such device")
    failed = {"a": same, "b": ZeroDivisionError("oh"), "c": ConfigError("c: no such device")}
    assert str(failure(failed, 9)) == (
        "3 of 9 tasks failed; the others are done, and the same command does only these again:\n"
        "  a, c: no such device\n"
        "  b: ZeroDivisionError: oh"
    )


def interrupted(number):
    if number == 0:
        time.sleep(0.5)
        raise KeyboardInterrupt
    return number


def test_an_interrupt_starts_nothing_more():
    started = []
    with pytest.raises(KeyboardInterrupt):
        for number, _ in in_workers(interrupted, range(50), 1):
            started.append(number)
    assert started == []
