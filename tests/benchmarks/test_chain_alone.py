"""Training the chain's subnets alone."""

from __future__ import annotations

import json
import re

import pytest
from distill.data.folders import write_fashion

from .conftest import script

study = script("chain_alone")
TINY = study.Study(images=40, epochs=1, batch_size=20)


@pytest.fixture(scope="module")
def chain():
    """Whatever the last run of the chain has written; constraints differ from run to run."""
    return json.loads(study.CHAIN.read_text())


def test_the_rows_are_those_of_one_constraint_with_their_spaces(chain):
    constraint_ms = chain["comparison"]["constraints_ms"][0]
    rows = study.compared(chain, constraint_ms)
    spaces = {c["name"]: c["space"] for c in chain["comparison"]["contenders"]}
    assert {row["contender"]: row["space"] for row in rows} == spaces
    compared = {(row["contender"], row["seed"]) for row in rows}
    assert len(compared) == len(rows)


def test_a_constraint_that_the_chain_does_not_have_is_named(chain):
    constraints = re.escape(str(chain["comparison"]["constraints_ms"]))
    with pytest.raises(ValueError, match=f"constraint 9 ms: the chain has {constraints}"):
        study.compared(chain, 9)


def test_each_subnet_of_the_tightest_constraint_is_trained_once(chain, tmp_path, monkeypatch):
    trainings, alone = [], study.alone
    tightest = min(chain["comparison"]["constraints_ms"])
    rows = study.compared(chain, tightest)[:2]
    asked = []
    monkeypatch.setattr(study, "STUDY", TINY)
    monkeypatch.setattr(study, "compared", lambda _, ms: asked.append(ms) or rows)
    monkeypatch.setattr(study, "alone", lambda *a: trainings.append(a) or alone(*a))
    dataset = write_fashion(tmp_path / "fashion", count=60)
    given = ["--dataset", str(dataset), "--output", str(tmp_path / "out.json")]
    for _ in range(2):
        study.main([str(tmp_path / "work"), *given])
    assert len(trainings) == 2
    assert asked == [tightest, tightest]
    found = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert all(0 <= row["alone"] <= 1 for row in found)
    assert (tmp_path / "out.md").read_text().count("|\n") == 3
