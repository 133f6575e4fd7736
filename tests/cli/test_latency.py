"""The verbs about latency: `predict`, `predictor` and `device-report`."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from published import published_file

from nni_spaceevo.cli import main
from nni_spaceevo.cli.latency import PROFILE_OPTIONS
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.latency import find_predictor, load_predictor, machine, measure
from nni_spaceevo.latency.profile import ProfileOptions
from nni_spaceevo.latency.sampling import random_network

ONNXW = "onnxw-151122-023231"
PREDICTOR = "x86_vnni_ort_int8"
DIGITS = str(Path(__file__).parents[2] / "examples" / "digits" / "hyperspace.yaml")


def test_the_help_names_the_defaults_of_profiling():
    defaults = msgspec.structs.asdict(ProfileOptions())
    for name, what in PROFILE_OPTIONS.items():
        assert what.endswith(f"default: {defaults[name]}"), name


def test_predict_prints_the_ends_of_a_space(job, capsys):
    assert main(["predict", "--job", str(job.path), "--space", "synthetic-120-201"]) == 0
    small, large = capsys.readouterr().out.splitlines()
    assert float(small.split()[0]) < float(large.split()[0])
    assert "MFLOPs" in small


def test_predict_takes_subnet_codes(job, capsys):
    space = job.hyperspace.space("synthetic-120-201")
    code = str(job.hyperspace.smallest_subnet(space))
    assert main(["predict", "--job", str(job.path), "--space", str(space), code]) == 0
    assert capsys.readouterr().out.rstrip().endswith(code)


def test_predict_explains_a_network_of_a_preset_without_a_job(capsys):
    arguments = ["predict", "--space", ONNXW, "--predictor", PREDICTOR]
    assert main(arguments) == 0
    code = capsys.readouterr().out.splitlines()[0].split()[-1]
    assert main([*arguments, "--explain", code]) == 0
    text = capsys.readouterr().out
    assert "stage1 block 2" in text
    assert "QLinearConv" in text
    assert max(map(len, text.splitlines()[1:])) <= 100


def test_predictors_of_the_package_are_listed_and_shown(capsys):
    assert main(["predictor", "list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert PREDICTOR in names
    for name in names:
        assert main(["predictor", "show", name]) == 0
    assert "held out" in capsys.readouterr().out


def test_a_device_report_is_one_page(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["device-report", PREDICTOR, "--output", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    assert "<svg" in text
    assert "src=" not in text, "the page loads nothing"


def test_a_device_report_of_any_name_looks_for_its_own_fp32_sibling(tmp_path, capsys):
    for name, source in (("board", PREDICTOR), ("board_fp32", "x86_vnni_ort_fp32")):
        page = tmp_path / f"{name}.html"
        load_predictor(find_predictor(source)).save(tmp_path / name)
        arguments = ["device-report", str(tmp_path / "board"), "--output", str(page)]
        assert main(arguments) == 0
    assert "No FP32 predictor" in (tmp_path / "board.html").read_text()
    assert "No FP32 predictor" not in (tmp_path / "board_fp32.html").read_text()


def test_an_nn_meter_folder_is_not_read_unless_its_pickles_are_trusted(tmp_path, capsys):
    (tmp_path / "meta.yaml").write_text("name: some\nversion: 1.0\nkernel_predictors: [conv]\n")
    (tmp_path / "fusion_rules.json").write_text("{}")
    (tmp_path / "conv.pkl").write_bytes(b"never read")
    arguments = ["predict", "--space", ONNXW, "--predictor", str(tmp_path)]
    assert main(arguments) == 1
    assert "--trust-pickle" in capsys.readouterr().err


def test_what_the_job_file_says_is_not_said_again(job, capsys):
    arguments = ["predict", "--job", str(job.path), "--space", "synthetic-120-201"]
    for option in (["--predictor", PREDICTOR], ["--hyperspace", "onnxw"], ["--trust-pickle"]):
        assert main([*arguments, *option]) == 1
        assert f"{option[0]}: the job file says that" in capsys.readouterr().err


def test_another_cpu_of_the_same_kind_is_told_and_one_of_no_kind_refused(monkeypatch, capsys):
    cpu = {"flags": "", "kind": "x86_64"}
    cpuinfo = "model name\t: Some CPU\nflags\t: {flags}\n"
    monkeypatch.setattr(machine, "_read", lambda path: cpuinfo.format(**cpu))
    monkeypatch.setattr(machine.platform, "machine", lambda: cpu["kind"])
    arguments = ["predict", "--space", ONNXW]
    for flags, name in {"avx2 avx512_vnni": "x86_vnni_ort_int8", "avx2": "x86_ort_int8"}.items():
        cpu["flags"] = flags
        assert main(arguments) == 0
        told = capsys.readouterr().err
        assert f"{name} was measured on AMD EPYC; this is Some CPU" in told
    cpu["kind"] = "aarch64"
    assert main(arguments) == 1
    assert "the package has no aarch64_ort_int8, for CPUs like this" in capsys.readouterr().err


def test_a_predictor_is_validated_on_the_machine_at_hand(monkeypatch, capsys):
    # What a measurement is worth is not asked here, and others use the machine, too.
    monkeypatch.setattr(measure, "_GATE", 1e9)
    monkeypatch.setattr(measure, "_TOO_NOISY", 1.0)
    arguments = ["predictor", "validate", PREDICTOR, "--hyperspace", DIGITS, "--networks", "3"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert PREDICTOR in text
    assert "measured / predicted" in text
    assert main([*arguments[:-1], "0"]) == 1
    assert "expected at least one network" in capsys.readouterr().err


@pytest.mark.slow
def test_a_predictor_is_exported_to_nn_meter(tmp_path, capsys):
    output = tmp_path / "exported"
    arguments = ["predictor", "export-nn-meter", PREDICTOR, "--hyperspace", DIGITS]
    assert main([*arguments, "--output", str(output)]) == 0
    assert "nn-Meter's predict against ours on 24 held-out subnets" in capsys.readouterr().out
    assert (output / "meta.yaml").is_file()
    assert json.loads((output / "export.json").read_text())["name"] == PREDICTOR


@pytest.mark.slow
def test_the_packages_pixel_4_is_what_its_command_fits(tmp_path, capsys):
    folder = published_file("blocks_pixel4_tflite_int8.json.gz").parent
    output = tmp_path / "pixel4_tflite_int8"
    arguments = ["predictor", "fit-published", str(folder), "--device", "pixel4"]
    assert main([*arguments, "--output", str(output)]) == 0
    assert "held_out_rows" in capsys.readouterr().out
    mobilew, rng = load_hyperspace("mobilew"), np.random.default_rng(0)
    chains = [random_network(mobilew, rng).placed for _ in range(50)]
    here, packed = (load_predictor(f) for f in (output, find_predictor(output.name)))
    # Another kind of CPU rounds sums otherwise, and trees split where it falls.
    assert here.network_ms(chains) == pytest.approx(packed.network_ms(chains), rel=0.02)


def test_published_data_that_are_not_there_are_named(tmp_path, capsys):
    arguments = ["predictor", "fit-published", str(tmp_path / "none"), "--device", "xeon"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
