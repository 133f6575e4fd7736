"""The command line as a whole: its verbs, its errors, and how fast it starts."""

import subprocess
import sys

import pytest

from nni_spaceevo.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lut", "build", "--job", "{folder}/nowhere.yaml"], "nowhere.yaml: cannot read"),
        (["lut", "show", "{folder}/no.lut", "--hyperspace", "onnxw"], "no.lut: no such LUT"),
        (["lut", "show", "{lut}", "--hyperspace", "onnxw"], "made for hyperspace 'synthetic'"),
        (["lut", "show", "{lut}", "--hyperspace", "nowhere"], "'nowhere': expected a YAML file"),
        (["predict", "--job", "{job}", "--space", "synthetic-920-201"], "stage1 block type 9"),
        (["predict", "--job", "{job}", "--space", "onnxw-120-201"], "expected 'synthetic'"),
        (["search", "--job", "{job}", "--evaluations", "0"], "evaluations must be at least 1"),
        (["search", "--job", "{job}", "--sample-size", "900"], "sample_size must be"),
        (["report", "--job", "{job}"], "search.json; search first"),
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
    filled = [a.format(job=job.path, folder=job.path.parent, lut=job.lut_path) for a in arguments]
    assert main(filled) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("spaceevo: ")
    assert words in error


def test_the_console_script_lists_its_verbs():
    command = [sys.executable, "-m", "nni_spaceevo.cli", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for verb in (
        "doctor",
        "register",
        "profile",
        "predict",
        "predictor",
        "device-report",
        "lut",
        "search",
        "distill",
        "train",
        "report",
        "demo",
        "export",
        "bench",
    ):
        assert f"\n    {verb}" in text


def test_the_command_line_imports_a_step_only_when_it_is_run():
    code = "import sys, nni_spaceevo.cli; print({'numpy', 'torch', 'nni'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
