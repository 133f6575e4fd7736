"""Several processes train a supernet as if they were one."""

from __future__ import annotations

from pathlib import Path

import pytest
from several_processes import torchrun

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.parallel import Ranks
from nni_spaceevo.supernet.config import SupernetConfig
from nni_spaceevo.supernet.run import SupernetRun
from nni_spaceevo.supernet.weights import load_supernet

from . import one_of_several
from .tiny import CONFIG, stripes, tiny_hyperspace, uniform

TINY = tiny_hyperspace()
SPACE = uniform(TINY)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    alone = SupernetRun(TINY, SPACE, stripes(), CONFIG, tmp_path / "alone")
    alone.run()
    torchrun(2, one_of_several.__file__, str(tmp_path / "two"), cwd=Path(__file__).parents[1])
    together = load_supernet(tmp_path / "two" / "tiny-00-00.pt", TINY, SPACE)
    images = stripes().test_images
    for code in (together.largest, together.smallest):
        # Sums in another order; a rounding of a quantizer that tips is a step of its scale, from
        # which a step of training makes other weights.
        a, b = (net.eval()(images, code) for net in (alone.supernet, together))
        assert (a - b).abs().mean() < 0.25 * a.abs().mean()
    read = SupernetRun(TINY, SPACE, stripes(), CONFIG, tmp_path / "two")
    first, *later = zip(alone.epochs, read.epochs, strict=True)
    for kind in ("largest", "smallest", "random"):
        ours, theirs = (getattr(epoch, kind) for epoch in first)
        assert theirs == pytest.approx(ours, rel=1e-3)
    # From then on rounding grows: the rate is high, and gradients of scales that BatchNorm undoes
    # are nothing but rounding.
    for ours, theirs in later:
        assert theirs.largest == pytest.approx(ours.largest, rel=0.05)


def test_more_processes_than_images_in_a_batch_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="3 processes for batches of 2 images; expected"):
        SupernetRun(
            TINY, SPACE, stripes(), SupernetConfig(batch_size=2), tmp_path, ranks=Ranks(0, 3)
        )
