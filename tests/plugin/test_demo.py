"""Where the demo runs, and what it does not do twice. (`make demo` itself runs in the test of the
main job, on smaller settings.)"""

import shutil
import subprocess
import sys

import pytest

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.files import packed_folder
from nni_spaceevo.jobs.results import SearchResults
from nni_spaceevo.plugin import demo
from nni_spaceevo.plugin.demo import demo_folder, run_demo


def test_in_a_checkout_the_example_is_run_where_it_is():
    assert demo_folder(None) == (packed_folder("examples") / "digits").resolve()


def test_a_new_folder_gets_a_copy_without_results(tmp_path):
    folder = demo_folder(tmp_path / "new")
    names = {p.name for p in folder.iterdir()}
    assert {"hyperspace.yaml", "search_space.yml", "spaceevo.yaml"} <= names
    example = packed_folder("examples") / "digits"
    assert names == {p.name for p in example.iterdir()} - {"work", "__pycache__"}


def test_a_folder_that_has_the_example_is_kept_as_it_is(tmp_path):
    folder = demo_folder(tmp_path / "new")
    (folder / "spaceevo.yaml").write_text("changed: true")
    assert demo_folder(folder) == folder
    assert (folder / "spaceevo.yaml").read_text() == "changed: true"


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="has other files"):
        demo_folder(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_finished_search_is_shown_not_repeated(tmp_path, monkeypatch, capsys):
    from .nni_experiments import write_job

    job = write_job(tmp_path / "job")
    shutil.copy(packed_folder("examples") / "digits" / demo.EXPERIMENT_FILE, job.path.parent)
    job.report_path.mkdir(parents=True)
    (job.report_path / "report.md").write_text("the report of before")
    monkeypatch.setattr(demo, "register", lambda: "registered")
    run_demo(job.path.parent, port=1, keep_web_ui=False)
    printed = capsys.readouterr().out
    assert "The search is done" in printed
    assert "the report of before" in printed


def demo_job(folder, trials):
    """The demo's files on a small job whose LUT is there, for real experiments."""
    from .nni_experiments import write_experiment, write_job

    job = write_job(folder)
    write_experiment(job, trials=trials)
    return job


KILLED = """
import sys
from pathlib import Path
from nni_spaceevo.plugin.demo import run_demo
run_demo(Path(sys.argv[1]), int(sys.argv[2]), keep_web_ui=False)
"""


@pytest.mark.slow
@pytest.mark.experiment
@pytest.mark.parametrize("also", ["nothing else", "the experiment"])
def test_a_demo_killed_with_9_in_its_search_continues_the_same_experiment(nni, tmp_path, also):
    from .nni_experiments import free_port

    job, port = demo_job(tmp_path / "job", trials=16), free_port()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(job.path.parent), str(port)])
    before = nni.wait_for_results(job, 4)
    process.kill()
    process.wait()
    if also == "the experiment":
        nni("stop", before.experiment)
    run_demo(job.path.parent, port, keep_web_ui=False)
    after = SearchResults.load(job.search_path)
    assert after.experiment == before.experiment
    assert after.spaces[:4] == before.spaces[:4]
    assert len(after.spaces) == 16
    assert (job.report_path / "report.md").is_file()
