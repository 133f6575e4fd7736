"""The whole loop on the machine that runs the tests, as small as it gets."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nni_spaceevo.errors import ConfigError, LockedError
from nni_spaceevo.files import exclusive
from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.latency import LatencyPredictor, format_report, load_predictor, measure
from nni_spaceevo.latency.profile import ProfileOptions, profile_device
from nni_spaceevo.latency.sampling import network

TINY = ProfileOptions(
    kernels_per_type=8, rounds=1, repeats=3, calibration_networks=5, validation_networks=3
)
# A busy test machine must not fail these: every visit counts as quiet.
PATIENT = {"_GATE": 1e9, "_TOO_NOISY": 1.0}
SCRIPT = """
import sys
from pathlib import Path
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.latency import measure
from nni_spaceevo.latency.profile import ProfileOptions, profile_device
measure._GATE, measure._TOO_NOISY = 1e9, 1.0
options = ProfileOptions(kernels_per_type=8, rounds=1, repeats=3, calibration_networks=5,
                         validation_networks=3)
profile_device(load_hyperspace(sys.argv[1]), Path(sys.argv[2]), options, progress=False)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    for name, value in PATIENT.items():
        monkeypatch.setattr(measure, name, value)


@pytest.fixture(scope="module")
def profiled(digits: Hyperspace, tmp_path_factory) -> LatencyPredictor:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT.items():
            patch.setattr(measure, name, value)
        output = tmp_path_factory.mktemp("profiled") / "this_machine"
        return profile_device(digits, output, TINY, progress=False)


def journal_of(folder: Path) -> Path:
    (journal,) = (folder / ".profile").glob("*.jsonl")
    return journal


def test_the_predictor_is_of_this_machine_and_hyperspace(profiled, digits):
    assert profiled.name == "this_machine"
    assert profiled.hyperspaces == {"digits": digits.fingerprint}
    assert profiled.device.runtime.startswith("onnxruntime")
    assert load_predictor(profiled.folder).fingerprint == profiled.fingerprint


def test_all_subnets_are_predicted_and_larger_ones_take_longer(profiled, digits, rng):
    space = digits.random_space(rng)
    codes = [digits.smallest_subnet(space), digits.largest_subnet(space)]
    codes += [digits.random_subnet(space, rng) for _ in range(10)]
    ms = profiled.network_ms([network(digits, space, c).kernels for c in codes])
    assert np.isfinite(ms).all()
    assert 0 < ms[0] < ms[1] < 1e3


def test_the_report_tells_what_was_held_out(profiled):
    report = profiled.report
    assert report["networks"]["count"] == 3
    assert set(report["kernels"]) == set(profiled.regressors)
    assert report["seconds"] > 0
    assert "networks" in format_report(report)


def test_the_same_measurements_give_the_same_predictor(profiled, digits, tmp_path):
    folder = shutil.copytree(profiled.folder, tmp_path / "this_machine")
    for path in folder.glob("*.*"):
        if path.is_file():
            path.unlink()
    before = journal_of(folder).read_bytes()
    again = profile_device(digits, folder, TINY, progress=False)
    assert journal_of(folder).read_bytes() == before
    assert again.fingerprint == profiled.fingerprint
    assert again.report == profiled.report


def test_only_what_a_torn_journal_lacks_is_measured_again(profiled, digits, tmp_path):
    folder = shutil.copytree(profiled.folder, tmp_path / "this_machine")
    journal = journal_of(folder)
    whole = journal.read_bytes()
    kept = whole[: whole.rfind(b"\n", 0, len(whole) - 300) + 20]
    journal.write_bytes(kept)
    profile_device(digits, folder, TINY, progress=False)
    intact = kept[: kept.rfind(b"\n") + 1]
    assert journal.read_bytes().startswith(intact)
    assert journal.read_bytes().count(b"\n") == whole.count(b"\n")


def test_a_killed_run_is_continued(digits, profiled, tmp_path):
    folder = tmp_path / "killed"
    hyperspace = Path(__file__).parents[2] / "examples" / "digits" / "hyperspace.yaml"
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, str(hyperspace), str(folder)])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        journals = list((folder / ".profile").glob("*.jsonl"))
        if journals and journals[0].read_bytes().count(b"\n") >= 20:
            break
        time.sleep(0.005)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert not (folder / "device.yaml").exists()
    written = journal_of(folder).read_bytes()
    written = written[: written.rfind(b"\n") + 1]
    predictor = profile_device(digits, folder, TINY, progress=False)
    assert journal_of(folder).read_bytes().startswith(written)
    # A continued run makes as many visits as an undisturbed one.
    visits = journal_of(profiled.folder).read_bytes().count(b"\n")
    assert journal_of(folder).read_bytes().count(b"\n") == visits
    assert set(predictor.regressors) == set(profiled.regressors)


def test_a_folder_being_profiled_is_locked(digits, tmp_path):
    code = (
        "import sys, pathlib; from nni_spaceevo.files import exclusive\n"
        f"with exclusive(pathlib.Path({str(tmp_path / '.profile' / 'measurements')!r})):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(LockedError, match=str(holder.pid)):
        profile_device(digits, tmp_path, TINY, progress=False)
    holder.communicate()
    with exclusive(tmp_path / ".profile" / "measurements"):
        pass


@pytest.mark.parametrize(("option", "value"), [("rounds", 0), ("kernels_per_type", 1)])
def test_impossible_options_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"{option}: {value}; expected at least"):
        ProfileOptions(**{option: value})
