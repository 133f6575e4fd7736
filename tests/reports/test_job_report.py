"""The report: its figures are those of the scores, its picture is one."""

import json
import subprocess
from dataclasses import replace

import pytest
from jobs.small_job import write_small_job

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.local_search import search_locally
from nni_spaceevo.jobs.scoring import score_config
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.reports.job_report import compare, format_comparison, write_report
from nni_spaceevo.search import EvolutionConfig, qt_score
from nni_spaceevo.testing import synthetic_lut


@pytest.fixture
def searched(tmp_path):
    search = {"constraints_ms": [1.2, 1.5], "samples": 1000}
    job = write_small_job(tmp_path, search=search)
    best = job.hyperspace.space("synthetic-120-201")
    synthetic_lut(job.hyperspace, best).save(job.lut_path)
    lut = QuantizedLUT.load(job.lut_path, job.hyperspace)
    config = EvolutionConfig(population_size=20, sample_size=6)
    return job, lut, search_locally(job, lut, config, 300)


def test_the_report_names_best_uniform_and_random_scores_and_a_next_command(searched):
    job, lut, results = searched
    folder = write_report(job, results)
    text = (folder / "report.md").read_text()
    config = score_config(job, results.constraints_ms)
    comparison = compare(lut, job.hyperspace.space(results.best.space), config)
    assert results.best.space in text
    assert f"{comparison.uniform[0].score:.4f}" in text
    assert f"{comparison.random_median:.4f}" in text
    command = text.split("    ")[-1].split()
    assert command[1:4] == ["predict", "--job", str(job.path)]
    # What the report says to type next works, whether or not an environment is activated.
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "MFLOPs" in done.stdout
    assert "within 1.2 / 1.5 ms" in text


def test_the_data_beside_it_is_json_with_the_same_figures(searched):
    job, lut, results = searched
    data = json.loads((write_report(job, results) / "report.json").read_text())
    code = job.hyperspace.space(data["best"]["space"])
    score = qt_score(lut, code, score_config(job, results.constraints_ms)).score
    assert data["best"]["qt_score"] == score
    assert data["best"]["stages"] == job.hyperspace.parameters(code)
    best_uniform = data["uniform"][0]["qt_score"]
    assert best_uniform == max(u["qt_score"] for u in data["uniform"])
    assert data["best"]["qt_score"] >= best_uniform


def test_the_picture_is_a_png_of_a_readable_size(searched):
    job, _, results = searched
    content = (write_report(job, results) / "report.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20], "big") >= 1000


def test_without_a_search_there_is_no_report(tmp_path):
    job = write_small_job(tmp_path)
    with pytest.raises(ConfigError, match=r"no .*search\.json; search first"):
        write_report(job)


def test_scores_of_other_settings_are_not_reported(searched):
    job, _, _ = searched
    write_report(job)
    job.path.write_text(job.path.read_text().replace("samples: 1000", "samples: 2000"))
    with pytest.raises(ConfigError, match=r"search\.json is of a search with other settings"):
        write_report(Job(job.path))


def test_where_no_other_space_keeps_within_t_nothing_is_divided(searched, tmp_path):
    job, lut, results = searched
    config = score_config(job, results.constraints_ms)
    found = compare(lut, job.hyperspace.space(results.best.space), config)
    nothing = replace(found.uniform[0], scores=(0.0, 0.0))
    alone = replace(found, uniform=(nothing,), random=(0.0, 0.0, 0.0))
    text = format_comparison(job, results, alone, tmp_path)
    assert "where there is 0 for the best uniform" in text
    assert "where there is 0 for the median random space, and above 100 % of" in text
