"""Training the chain's subnets alone."""

from __future__ import annotations

import json

import pytest
from distill.data.folders import write_fashion

from .conftest import script

study = script("chain_alone")
TINY = study.Study(images=40, epochs=1, batch_size=20)


@pytest.fixture(scope="module")
def chain():
    return json.loads(study.CHAIN.read_text())


def test_the_rows_are_those_of_one_constraint_with_their_spaces(chain):
    rows = study.compared(chain, 0.06703)
    assert {row["contender"] for row in rows} == {
        c["name"] for c in chain["comparison"]["contenders"]
    }
    assert all(row["measured_ms"] <= 0.06703 * 1.05 for row in rows)


def test_a_constraint_that_the_chain_does_not_have_is_named(chain):
    with pytest.raises(ValueError, match=r"constraint 9 ms: the chain has \[0.0546"):
        study.compared(chain, 9)


def test_each_subnet_is_trained_once(chain, tmp_path, monkeypatch):
    trainings, alone = [], study.alone
    rows = study.compared(chain, 0.06703)[:2]
    monkeypatch.setattr(study, "STUDY", TINY)
    monkeypatch.setattr(study, "compared", lambda *_: rows)
    monkeypatch.setattr(study, "alone", lambda *a: trainings.append(a) or alone(*a))
    dataset = write_fashion(tmp_path / "fashion", count=60)
    given = ["--dataset", str(dataset), "--output", str(tmp_path / "out.json")]
    for _ in range(2):
        study.main([str(tmp_path / "work"), *given])
    assert len(trainings) == 2
    found = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert all(0 <= row["alone"] <= 1 for row in found)
    assert (tmp_path / "out.md").read_text().count("|\n") == 3
