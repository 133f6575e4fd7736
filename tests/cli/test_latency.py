"""The verbs about latency: `predict`, `predictor` and `device-report`."""

import msgspec

from nni_spaceevo.cli import main
from nni_spaceevo.cli.latency import PROFILE_OPTIONS
from nni_spaceevo.latency import machine
from nni_spaceevo.latency.profile import ProfileOptions

ONNXW = "onnxw-151122-023231"
PREDICTOR = "x86_vnni_ort_int8"


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
    cpu = {"flags": "avx2 avx512_vnni"}
    cpuinfo = "model name\t: Some CPU\nflags\t: {flags}\n"
    monkeypatch.setattr(machine, "_read", lambda path: cpuinfo.format(**cpu))
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    arguments = ["predict", "--space", ONNXW]
    assert main(arguments) == 0
    assert "x86_vnni_ort_int8 was measured on AMD EPYC; this is Some CPU" in capsys.readouterr().err
    cpu["flags"] = "avx2"
    assert main(arguments) == 1
    assert "the package has no x86_ort_int8, for CPUs like this Some" in capsys.readouterr().err
