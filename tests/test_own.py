"""A user's own code by import path."""

import sys

import pytest

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.own import import_own


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "beside_the_job.py").write_text("def answer():\n    return 42\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "beside_the_job", raising=False)
    return tmp_path


def test_a_module_beside_the_job_file_is_found(folder):
    assert import_own("beside_the_job:answer", folder, "teacher")() == 42


def test_a_file_beside_the_job_hides_no_package(folder):
    (folder / "statistics.py").write_text("raise SystemExit")
    assert import_own("statistics:mean", folder, "teacher")


@pytest.mark.parametrize("name", ["nowhere:f", "beside_the_job:f", "beside_the_job", ":f"])
def test_what_is_not_there_is_one_error(folder, name):
    with pytest.raises(ConfigError, match=rf"dataset '{name}': expected <module>:<function>"):
        import_own(name, folder, "dataset")
