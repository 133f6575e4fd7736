"""The command line: every verb does its step, every error is one line."""

import subprocess
import sys

import pytest
from plugin.small_job import write_small_job

from nni_spaceevo.cli import main
from nni_spaceevo.testing import synthetic_lut


@pytest.fixture
def job(tmp_path):
    job = write_small_job(tmp_path, search={"constraints_ms": [1.5], "samples": 1000})
    synthetic_lut(job.hyperspace, job.hyperspace.space("synthetic-120-201")).save(job.lut_path)
    return job


def test_search_prints_the_report(job, capsys):
    assert (
        main(
            [
                "search",
                "--job",
                str(job.path),
                "--evaluations",
                "200",
                "--population-size",
                "20",
                "--sample-size",
                "6",
            ]
        )
        == 0
    )
    assert "Best of 200 scored spaces: **synthetic-120-201**" in capsys.readouterr().out


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


def test_lut_says_what_is_there(job, capsys):
    assert main(["lut", "--job", str(job.path)]) == 0
    assert "sub-stages, subnets of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lut", "--job", "{folder}/nowhere.yaml"], "nowhere.yaml: cannot read"),
        (["predict", "--job", "{job}", "--space", "synthetic-920-201"], "stage1 block type 9"),
        (["predict", "--job", "{job}", "--space", "onnxw-120-201"], "expected 'synthetic'"),
        (["search", "--job", "{job}", "--evaluations", "0"], "evaluations must be at least 1"),
        (["search", "--job", "{job}", "--sample-size", "900"], "sample_size must be"),
        (["report", "--job", "{job}"], "nothing searched yet"),
        (["predict", "--space", "nowhere-1-1"], "'nowhere'"),
        (["predict", "--space", "onnxw-000000-000000", "--predictor", "toaster"], "'toaster'"),
        (["predictor", "show", "{folder}"], "no such folder with a device.yaml"),
        (["device-report", "toaster"], "the package has: "),
        (
            ["profile", "--device", "toaster", "--hyperspace", "onnxw", "--output", "{folder}/p"],
            "'toaster': expected one of ort-x86-int8",
        ),
        (
            ["profile", "--rounds", "0", "--hyperspace", "onnxw", "--output", "{folder}/p"],
            "rounds: 0; expected at least 1",
        ),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_an_error_is_one_line_and_exit_code_1(job, capsys, arguments, words):
    filled = [a.format(job=job.path, folder=job.path.parent) for a in arguments]
    assert main(filled) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("spaceevo: ")
    assert words in error


def test_a_truncated_lut_reaches_the_terminal_by_name(job, capsys):
    job.lut_path.write_bytes(job.lut_path.read_bytes()[:500])
    assert main(["search", "--job", str(job.path)]) == 1
    assert "synthetic.lut: truncated or not a LUT" in capsys.readouterr().err


ONNXW = "onnxw-151122-023231"
PREDICTOR = "x86_vnni_ort_int8"


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


def test_an_nn_meter_folder_is_not_read_unless_its_pickles_are_trusted(tmp_path, capsys):
    (tmp_path / "meta.yaml").write_text("name: some\nversion: 1.0\nkernel_predictors: [conv]\n")
    (tmp_path / "fusion_rules.json").write_text("{}")
    (tmp_path / "conv.pkl").write_bytes(b"never read")
    arguments = ["predict", "--space", ONNXW, "--predictor", str(tmp_path)]
    assert main(arguments) == 1
    assert "--trust-pickle" in capsys.readouterr().err


def test_the_console_script_lists_its_verbs():
    command = [sys.executable, "-m", "nni_spaceevo.cli", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for verb in (
        "doctor",
        "register",
        "profile",
        "predict",
        "lut",
        "search",
        "report",
        "demo",
        "predictor",
    ):
        assert verb in text
