"""A built wheel carries data and examples, and works outside the checkout."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]

CHECK = """
from pathlib import Path
import nni_spaceevo
from nni_spaceevo import load_hyperspace, load_predictor
from nni_spaceevo.files import packed_folder
assert Path(nni_spaceevo.__file__).is_relative_to(Path({env!r})), nni_spaceevo.__file__
assert load_hyperspace("onnxw").num_spaces == 95_551_488
for name in ("latency_predictors", "examples"):
    assert packed_folder(name).is_relative_to(Path({env!r})), packed_folder(name)
folders = [p.parent for p in packed_folder("latency_predictors").glob("*/device.yaml")]
assert folders
for folder in folders:
    load_predictor(folder)
from nni_spaceevo.plugin.demo import demo_folder
from nni_spaceevo.jobs.job import Job
place = demo_folder(None)
assert place == Path.cwd() / "spaceevo-digits"
assert Job(place / "spaceevo.yaml").hyperspace.num_spaces > 10_000
assert not (packed_folder("examples") / "digits" / "work").exists()
"""


@pytest.fixture(scope="module")
def wheel_environment(tmp_path_factory):
    """An environment with the wheel alone; its dependencies are those of this one."""
    place = tmp_path_factory.mktemp("wheel")
    leftover = ROOT / "examples" / "digits" / "work" / "left_by_a_demo"
    leftover.parent.mkdir(exist_ok=True)
    leftover.touch()
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place)]
    try:
        subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    finally:
        leftover.unlink()
    wheel = next(place.glob("*.whl"))
    home = place / "env"
    venv.create(home, with_pip=True, symlinks=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--disable-pip-version-check", "--no-index", str(wheel)], check=True)
    # Downloading torch again would take minutes and prove nothing; its folder is appended, so that
    # nni_spaceevo itself still comes from the wheel.
    site = next((home / "lib").glob("python*/site-packages"))
    here = next(p for p in sys.path if p.endswith("site-packages"))
    (site / "dependencies.pth").write_text(here + "\n")
    return home


def run(home, *command, cwd):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [str(home / "bin" / command[0]), *command[1:]],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_installed_wheel_has_presets_predictors_and_the_example(wheel_environment, tmp_path):
    result = run(
        wheel_environment, "python", "-c", CHECK.format(env=str(wheel_environment)), cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr


def test_the_installed_console_script_distils_and_searches(wheel_environment, tmp_path):
    from jobs.small_job import write_small_job

    job = write_small_job(tmp_path / "job")
    arguments = ("search", "--job", str(job.path), "--evaluations", "60")
    options = ("--population-size", "20", "--sample-size", "5")
    result = run(wheel_environment, "spaceevo", *arguments, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Best of 60 scored spaces" in result.stdout
    assert (tmp_path / "job" / "work" / "local_report" / "report.png").is_file()
