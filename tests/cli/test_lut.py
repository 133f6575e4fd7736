"""The verb `lut`: build, merge, import, price, show."""

import pytest

from nni_spaceevo.cli import main
from nni_spaceevo.hyperspace import format_chain
from nni_spaceevo.jobs.distillation import rows_folder
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.lut.published import JOINED
from nni_spaceevo.testing import synthetic_stage_rows

PREDICTOR = "x86_vnni_ort_int8"


@pytest.fixture
def csv(job):
    """The job's LUT as its authors might have published it."""
    lut = QuantizedLUT.load(job.lut_path, job.hyperspace)
    path = job.path.with_name("published.csv")
    with path.open("w") as stream:
        print(*JOINED, sep=",", file=stream)
        for i in range(len(lut)):
            r = lut.row(i)
            hw = job.hyperspace.input_hw(job.hyperspace.searchable[r.stage], r.resolution)
            figures = (lut.columns[k][i] for k in ("loss", "mflops", "mparams", "latency_ms"))
            cell = (r.stage + 1, r.block, r.window, format_chain(r.chain), r.cin, hw)
            print(*cell, *figures, sep=",", file=stream)
    return path


@pytest.fixture
def hyperspace(job):
    """The job's hyperspace as an option."""
    return ["--hyperspace", str(job.path.with_name("hyperspace.yaml"))]


@pytest.fixture
def output(tmp_path):
    """A file to write, and the option that says so."""
    path = tmp_path / "out" / "new.lut"
    return path, ["--output", str(path)]


def test_build_says_what_is_there(job, capsys):
    assert main(["lut", "build", "--job", str(job.path)]) == 0
    assert "sub-stages, subnets of" in capsys.readouterr().out


def test_merge_collects_rows_and_builds_the_lut(job, tmp_path, capsys):
    job.lut_path.unlink()
    rows = rows_folder(job)
    tasks = list(rows.tasks)
    for name, part in (("a", tasks[:5]), ("b", tasks[3:])):
        source = type(rows)(tmp_path / name, job.hyperspace, rows.made_with)
        for task in part:
            source.add(synthetic_stage_rows(job.hyperspace, task, rows.made_with), "test")
    merge = ["lut", "merge", "--job", str(job.path)]
    assert main([*merge, str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert f"{job.rows_path}: 5 new, 5 of 9\nmissing: {', '.join(tasks[5:])}\n" in said
    assert not job.lut_path.exists()
    assert main([*merge, str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert f"{job.rows_path}: 4 new, 9 of 9\n" in (said := capsys.readouterr().out)
    assert f"{job.lut_path}: 108 sub-stages, subnets of " in said
    assert f"{job.lut_path}: 640 held-out images put 9" in said
    before = job.lut_path.read_bytes()
    assert main([*merge, str(tmp_path / "b"), str(tmp_path / "b")]) == 0
    assert f"{job.rows_path}: 0 new, 9 of 9\n" in capsys.readouterr().out
    assert job.lut_path.read_bytes() == before


def test_merge_refuses_rows_of_other_settings(job, tmp_path, capsys):
    rows = synthetic_stage_rows(job.hyperspace, "stage1_resnet", "elsewhere")
    type(rows_folder(job))(tmp_path / "a", job.hyperspace, "elsewhere").add(rows, "test")
    assert main(["lut", "merge", str(tmp_path / "a"), "--job", str(job.path)]) == 1
    assert "stage1_resnet was distilled with other settings" in capsys.readouterr().err


def test_import_with_given_latencies_of_stem_and_head(job, csv, hyperspace, output, capsys):
    path, to = output
    given = ["--other-stages-ms", "8=0.5", "16=0.75", "--device-name", "my phone"]
    assert main(["lut", "import", str(csv), *hyperspace, *given, *to]) == 0
    assert f"{path}: 1080 sub-stages, subnets of " in capsys.readouterr().out
    lut = QuantizedLUT.load(path, job.hyperspace)
    built = QuantizedLUT.load(job.lut_path, job.hyperspace)
    assert lut.rows_fingerprint == built.rows_fingerprint
    assert lut.header.other_ms == {"8": 0.5, "16": 0.75}
    assert (lut.header.device, lut.header.other_ms_source) == ("my phone", "given by the user")


def test_import_with_a_predictor_for_stem_and_head(job, csv, hyperspace, output):
    path, to = output
    assert main(["lut", "import", str(csv), *hyperspace, "--predictor", PREDICTOR, *to]) == 0
    header = QuantizedLUT.load(path, job.hyperspace).header
    assert header.device == "published:synthetic"
    assert header.other_ms_source.startswith(f"latency predictor {PREDICTOR} (")
    assert 0 < header.other_ms["8"] < header.other_ms["16"]


def test_price_keeps_the_losses_and_show_says_so(job, hyperspace, output, capsys):
    path, to = output
    arguments = [str(job.lut_path), *hyperspace, "--predictor", PREDICTOR]
    assert main(["lut", "price", *arguments, *to]) == 0
    before, after = (QuantizedLUT.load(p, job.hyperspace) for p in (job.lut_path, path))
    assert (before.columns["loss"] == after.columns["loss"]).all()
    assert (before.columns["latency_ms"] != after.columns["latency_ms"]).all()
    capsys.readouterr()
    assert main(["lut", "show", str(path), *hyperspace]) == 0
    text = capsys.readouterr().out
    assert f"device         {PREDICTOR} (" in text
    assert "median NSR loss" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["8=1"], "given for resolutions [8]; synthetic needs [8, 16]"),
        (["8=1", "16=1", "24=1"], "given for resolutions [8, 16, 24]"),
        (["8=1", "8=2"], "--other-stages-ms: 8 is given twice"),
        (["8=1", "16"], "--other-stages-ms: '16'; expected RESOLUTION=MS"),
        (["8=1", "x=1"], "--other-stages-ms: 'x=1'; expected"),
        (["8=1", "16=fast"], "--other-stages-ms: '16=fast'; expected"),
        (["8=1", "16=-2"], "at resolution 16: -2.0 ms"),
    ],
)
def test_wrong_latencies_of_stem_and_head_are_refused(
    csv, hyperspace, output, capsys, given, words
):
    path, to = output
    assert main(["lut", "import", str(csv), *hyperspace, "--other-stages-ms", *given, *to]) == 1
    assert words in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ([], "one of the arguments --predictor --other-stages-ms is required"),
        (["--predictor", PREDICTOR, "--other-stages-ms", "8=1", "16=1"], "not allowed with"),
    ],
)
def test_stem_and_head_are_priced_in_exactly_one_way(csv, hyperspace, output, capsys, other, words):
    with pytest.raises(SystemExit):
        main(["lut", "import", str(csv), *hyperspace, *other, *output[1]])
    assert words in capsys.readouterr().err


def test_a_bad_row_reaches_the_terminal_by_file_and_line(csv, hyperspace, output, capsys):
    lines = csv.read_text().splitlines()
    lines[4] = lines[4].replace("1,0,0", "8,0,0", 1)
    csv.write_text("\n".join(lines))
    given = ["--other-stages-ms", "8=1", "16=1"]
    assert main(["lut", "import", str(csv), *hyperspace, *given, *output[1]]) == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.endswith("published.csv, line 5: stage 8; expected 1 to 3")


def test_an_nn_meter_folder_is_not_read_unless_its_pickles_are_trusted(
    job, hyperspace, output, tmp_path, capsys
):
    folder = tmp_path / "meter"
    folder.mkdir()
    (folder / "meta.yaml").write_text("name: some\nversion: 1.0\nkernel_predictors: [conv]\n")
    (folder / "fusion_rules.json").write_text("{}")
    (folder / "conv.pkl").write_bytes(b"never read")
    arguments = [str(job.lut_path), *hyperspace, "--predictor", str(folder), *output[1]]
    assert main(["lut", "price", *arguments]) == 1
    assert "--trust-pickle" in capsys.readouterr().err
