"""The whole loop on the machine that runs the tests, as small as it gets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nni_spaceevo.errors import ConfigError, DeviceError, LockedError, PredictorError
from nni_spaceevo.files import exclusive
from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.latency import LatencyPredictor, format_report, load_predictor, measure, profile
from nni_spaceevo.latency.devices import get_device
from nni_spaceevo.latency.journal import Journal
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.profile import ProfileOptions, profile_device
from nni_spaceevo.latency.sampling import network
from nni_spaceevo.latency.validate import validate_predictor

TINY = ProfileOptions(
    kernels_per_type=8,
    more_kernels=10,
    rounds=1,
    repeats=3,
    calibration_networks=5,
    validation_networks=3,
)
DEVICE = get_device("ort-x86-int8")
# A busy test machine must not fail these: every visit counts as quiet.
PATIENT = {"_GATE": 1e9, "_TOO_NOISY": 1.0}
SCRIPT = """
import sys
from pathlib import Path
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.latency import measure
from nni_spaceevo.latency.devices import get_device
from nni_spaceevo.latency.profile import ProfileOptions, profile_device
measure._GATE, measure._TOO_NOISY = 1e9, 1.0
options = ProfileOptions(kernels_per_type=8, more_kernels=10, rounds=1, repeats=3,
                         calibration_networks=5, validation_networks=3)
profile_device(get_device("ort-x86-int8"), load_hyperspace(sys.argv[1]), Path(sys.argv[2]),
               options, force=True, progress=False)
"""

# Networks measured in a few runs miss the accuracy gate, and are kept by force.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::nni_spaceevo.errors.PredictorWarning"),
]


def run(hyperspace: Hyperspace, output: Path) -> LatencyPredictor:
    """Profile the machine at hand as quickly as can be."""
    return profile_device(DEVICE, hyperspace, output, TINY, force=True, progress=False)


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
        return run(digits, output)


def journal_of(folder: Path) -> Path:
    (journal,) = (folder / ".profile").glob("*.jsonl")
    return journal


def test_the_predictor_is_of_this_machine_and_hyperspace(profiled, digits):
    assert profiled.name == "this_machine"
    assert profiled.provenance.hyperspaces == {"digits": digits.fingerprint}
    assert profiled.machine.runtime.startswith("onnxruntime")
    assert profiled.provenance.device == "ort-x86-int8"
    assert load_predictor(profiled.folder).fingerprint == profiled.fingerprint


def test_all_subnets_are_predicted_and_larger_ones_take_longer(profiled, digits, rng):
    space = digits.random_space(rng)
    codes = [digits.smallest_subnet(space), digits.largest_subnet(space)]
    codes += [digits.random_subnet(space, rng) for _ in range(10)]
    ms = profiled.network_ms([network(digits, space, c).placed for c in codes])
    assert np.isfinite(ms).all()
    assert 0 < ms[0] < ms[1] < 1e3


def test_the_report_tells_what_was_held_out(profiled):
    report = profiled.report
    assert report["networks"]["count"] == 3
    assert set(report["kernels"]) == set(profiled.kernels)
    left_out = report["kernels_below_noise"]
    assert len(report["measured_us"]) + left_out == report["kernels_measured"]
    assert report["seconds"] > 0
    assert "networks" in format_report(report)


def test_the_same_measurements_give_the_same_predictor(profiled, digits, tmp_path):
    folder = shutil.copytree(profiled.folder, tmp_path / "this_machine")
    for path in folder.glob("*.*"):
        if path.is_file():
            path.unlink()
    before = journal_of(folder).read_bytes()
    again = run(digits, folder)
    assert journal_of(folder).read_bytes() == before
    assert again.fingerprint == profiled.fingerprint
    assert again.report == profiled.report


def test_only_what_a_torn_journal_lacks_is_measured_again(profiled, digits, tmp_path):
    folder = shutil.copytree(profiled.folder, tmp_path / "this_machine")
    journal = journal_of(folder)
    whole = journal.read_bytes()
    kept = whole[: whole.rfind(b"\n", 0, len(whole) - 300) + 20]
    journal.write_bytes(kept)
    run(digits, folder)
    intact = kept[: kept.rfind(b"\n") + 1]
    assert journal.read_bytes().startswith(intact)
    assert journal.read_bytes().count(b"\n") == whole.count(b"\n")


def test_a_killed_run_is_continued(digits, profiled, tmp_path):
    folder = tmp_path / "killed"
    hyperspace = Path(__file__).parents[2] / "examples" / "digits" / "hyperspace.yaml"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(hyperspace), str(folder)])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        journals = list((folder / ".profile").glob("*.jsonl"))
        if journals and journals[0].read_bytes().count(b"\n") >= 20:
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "device.yaml").exists()
    written = journal_of(folder).read_bytes()
    written = written[: written.rfind(b"\n") + 1]
    predictor = run(digits, folder)
    assert journal_of(folder).read_bytes().startswith(written)
    # Nothing is measured more often than in an undisturbed run. (How many kernels there are
    # depends on what was measured, for more are taken where errors are large.)
    for journal in (journal_of(folder), journal_of(profiled.folder)):
        visits = Counter(slot.key for slot in Journal(journal).slots)
        networks = {n for key, n in visits.items() if key.startswith("network")}
        kernels = {n for key, n in visits.items() if not key.startswith("network")}
        assert (kernels, networks) == ({1}, {measure.NETWORK_VISITS})
    assert set(predictor.kernels) == set(profiled.kernels)


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
        run(digits, tmp_path)
    holder.communicate()
    with exclusive(tmp_path / ".profile" / "measurements"):
        pass


@pytest.mark.parametrize(("option", "value"), [("rounds", 0), ("kernels_per_type", 1)])
def test_impossible_options_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"{option}: {value}; expected at least"):
        ProfileOptions(**{option: value})


def test_a_predictor_that_fails_its_gate_is_not_written(digits, profiled, tmp_path):
    folder = tmp_path / "this_machine"
    shutil.copytree(profiled.folder / ".profile", folder / ".profile")
    with pytest.raises(PredictorError, match=r"fails its accuracy gate: .*3 held-out networks"):
        profile_device(DEVICE, digits, folder, TINY, progress=False)
    assert not (folder / "device.yaml").exists()
    assert json.loads((folder / ".profile" / "failed_report.json").read_text())["kernels"]


def test_measurements_of_another_runtime_are_not_mixed(digits, profiled, tmp_path):
    folder = tmp_path / "this_machine"
    shutil.copytree(profiled.folder / ".profile", folder / ".profile")
    (note,) = (folder / ".profile").glob("*.machine.json")
    note.rename(note.with_name("0000.machine.json"))
    with pytest.raises(DeviceError, match=r"holds measurements of ort-x86-int8, onnxruntime"):
        run(digits, folder)


def test_networks_measured_here_are_held_against_a_predictor(digits, profiled):
    report = validate_predictor(profiled, DEVICE, digits, networks=4, rounds=1, progress=False)
    assert report["count"] == 4
    assert 0.2 < report["measured_over_predicted"] < 5
    # A host busier than when the predictor was made is said too: on a shared one, it may be.
    here = [text for text in report["differences"] if "reference kernel takes" not in text]
    assert here == []
    with pytest.raises(DeviceError, match="runs float32; predictor this_machine is for int8"):
        validate_predictor(profiled, get_device("ort-x86-fp32"), digits, 4)


def test_kernels_below_the_noise_are_left_out_where_enough_are_left():
    kernels = [RuntimeKernel("add", 14, 8 * n, 8 * n) for n in range(1, 11)]
    kernels += [RuntimeKernel("pool", 14, 8 * n, 8 * n) for n in range(1, 4)]
    us = np.array([0.01, 0.01, *range(1, 9), 0.01, 1, 2], float)
    assert profile._above_noise(kernels, us) == list(range(2, 13))
