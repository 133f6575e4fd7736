"""The study of recipes for short trainings of supernets."""

from __future__ import annotations

import json

import pytest
from distill.data.folders import write_fashion

from .conftest import script

recipe = script("supernet_recipe")
TINY = recipe.Study(images=40, epochs=1, batch_size=20, random_subnets=1, recalibration_batches=1)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The output of a study of seconds, and how often a supernet was trained for it, twice run."""
    folder, trainings = tmp_path_factory.mktemp("recipe"), []
    dataset = write_fashion(folder / "fashion", count=60)
    given = [str(folder / "work"), "--dataset", str(dataset), "--output", str(folder / "out.json")]
    with pytest.MonkeyPatch.context() as patch:
        train = recipe.trained
        patch.setattr(recipe, "STUDY", TINY)
        patch.setattr(recipe, "SPACES", {"mbv2_res": "fashion-0000-0000"})
        patch.setattr(recipe, "trained", lambda *a: trainings.append(a[-1].name) or train(*a))
        recipe.main(given)
        first = (folder / "out.json").read_text()
        recipe.main(given)
        assert (folder / "out.json").read_text() == first
    return json.loads(first), (folder / "out.md").read_text(), trainings


def test_every_way_is_trained_once(outcome):
    result, _, trainings = outcome
    assert trainings == [row["way"] for row in result["rows"]] == [w.name for w in recipe.WAYS]


def test_each_row_has_what_was_trained(outcome):
    result, table, _ = outcome
    *with_others, alone = result["rows"]
    for row in with_others:
        assert {"largest", "smallest", "random"} <= row.keys()
        assert all(0 <= a <= 1 for a in (row["largest"], row["smallest"], *row["random"]))
    assert "smallest" not in alone
    assert table.count("`fashion-0000-0000`") == len(recipe.WAYS)


def test_the_largest_alone_is_all_that_is_trained():
    from nni_spaceevo.supernet.model import Supernet

    supernet = Supernet(recipe.load_hyperspace(recipe.HYPERSPACE), "fashion-0000-0000")
    alone = next(way for way in recipe.WAYS if way.alone)
    trainer = recipe.OnlyLargest(supernet, recipe.config_of(TINY, alone))
    assert trainer.plan(0, 0, 2, 20).subnets[0].stages == supernet.largest.stages
    assert len(trainer.plan(0, 0, 2, 20).subnets) == 1
