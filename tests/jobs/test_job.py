"""Job files: the examples read, wrong ones refused by file and key."""

import pytest

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.files import packed_folder
from nni_spaceevo.jobs.job import Job

from .small_job import write_small_job


def test_the_digits_example_is_a_hyperspace_of_the_promised_size():
    job = Job(packed_folder("examples") / "digits" / "spaceevo.yaml")
    assert job.hyperspace.num_spaces > 10_000
    assert len(job.hyperspace.searchable) >= 4
    assert len(job.hyperspace.block_types) >= 4
    assert all(len(s.windows) >= 3 for s in job.hyperspace.searchable)
    assert len(job.hyperspace.distill_resolutions) == 2
    assert max(job.hyperspace.resolutions) <= 32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, r"unknown field `epoch`.*allowed keys: .*teacher"),
        ({"lut": {"rows": 3}}, r"unknown field `rows`.*\$\.lut.*allowed keys: rows_per_cell"),
        ({"search": {}}, "either constraints_ms or constraint_quantiles"),
        ({"search": {"constraint_quantiles": [1.5]}}, "constraint_quantiles must lie within 0"),
        ({"search": {"constraints_ms": [5, 5]}}, "search: constraints_ms must differ"),
        ({"search": {"constraint_quantiles": [0.3], "t": 2}}, r"search: t must be in \(0, 1\]"),
        ({"seed": -1}, "seed must be at least 0, given -1"),
        ({"schema": 9}, "job schema 9; this version reads 1"),
        ({"hyperspace": "nowhere"}, "hyperspace 'nowhere': expected a YAML file or one of"),
        ({"distill": {"batch_size": 0}}, "batch_size must be at least 2"),
        ({"seed": "one"}, r"Expected `int`, got `str`.*\$\.seed"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_a_wrong_key_or_value_is_one_error(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        write_small_job(tmp_path, **changes)


def test_a_resolution_that_no_supernet_can_have_is_refused_at_once(tmp_path):
    job = write_small_job(tmp_path)
    path = tmp_path / "hyperspace.yaml"
    text = path.read_text().replace("stride: 1", "stride: 2")
    path.write_text(text.replace("\nresolutions: [8, 16]", "\nresolutions: [8, 17]"))
    total = 2 ** text.count("stride: 2")
    with pytest.raises(ConfigError, match=rf"resolution \d+ .* multiple of {total // 2}"):
        Job(job.path)


def test_an_error_names_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"spaceevo\.yaml: "):
        write_small_job(tmp_path, epoch=3)
