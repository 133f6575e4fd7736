from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from nni_spaceevo.errors import PredictorError
from nni_spaceevo.latency.features import base_names
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.regressor import Regressor, Trees
from nni_spaceevo.latency.views import view_of

KERNELS = [RuntimeKernel("conv", hw, c, 2 * c, 3) for hw in (4, 9) for c in (8, 20, 64)]


@pytest.fixture(scope="module")
def regressor(invented) -> Regressor:
    return invented.kernels["conv"].regressor


def repacked(data: bytes, **changes: np.ndarray | None) -> bytes:
    """The archive with arrays replaced, or left out where None."""
    with np.load(io.BytesIO(data)) as archive:
        arrays = {**archive, **changes}
    stream = io.BytesIO()
    np.savez(stream, **{k: v for k, v in arrays.items() if v is not None})
    return stream.getvalue()


def test_a_stump_by_hand():
    trees = Trees(
        feature=np.array([[1, 0, 0]], np.int16),
        threshold=np.array([[5.0, 0, 0]]),
        left=np.array([[1, 1, 2]], np.int16),
        right=np.array([[2, 1, 2]], np.int16),
        value=np.array([[0, -1.0, 2.0]]),
        baseline=np.array(0.5),
        depth=np.array(1),
    )
    rows = np.array([[0.0, 4], [0, 5], [0, 6]])
    assert trees.predict(rows).tolist() == [-0.5, -0.5, 2.5]


def test_no_trees_leave_the_base_alone():
    base = Regressor("conv", np.full(len(base_names("conv")), 1e-3), Trees.none())
    assert (base.predict_us(KERNELS) > 0).all()
    assert (
        Regressor("conv", np.zeros(len(base_names("conv"))), Trees.none()).predict_us(KERNELS[:1])
        > 0
    )


def test_bytes_round_trip_exactly(regressor):
    data = regressor.to_bytes()
    again = Regressor.from_bytes(data, "conv", "here")
    assert np.array_equal(again.predict_us(KERNELS), regressor.predict_us(KERNELS))
    assert again.to_bytes() == data


def test_each_kernel_is_predicted_on_its_own(regressor):
    alone = [float(regressor.predict_us([k])[0]) for k in KERNELS]
    assert regressor.predict_us(KERNELS) == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -200])
def test_a_truncated_file_is_refused(regressor, keep):
    data = regressor.to_bytes()
    with pytest.raises(PredictorError, match=r"^here/conv\.npz: "):
        Regressor.from_bytes(data[:keep], "conv", "here/conv.npz")


def test_flipped_bytes_never_predict_silently(regressor, rng):
    data = regressor.to_bytes()
    expected = regressor.predict_us(KERNELS)
    for place in rng.integers(0, len(data), 60):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        try:
            read = Regressor.from_bytes(bytes(broken), "conv", "here")
        except PredictorError:
            continue
        # Some bytes of an archive (time stamps) mean nothing.
        assert np.array_equal(read.predict_us(KERNELS), expected)


def test_a_file_that_asks_for_another_version_of_zip_is_refused(regressor):
    broken = bytearray(regressor.to_bytes())
    broken[broken.index(b"PK\x01\x02") + 6] = 0xFF
    with pytest.raises(PredictorError, match=r"^here: not a readable kernel regressor: zip file"):
        Regressor.from_bytes(bytes(broken), "conv", "here")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schema", np.array(9), "schema is 9, expected 1"),
        ("kind", np.array("pool"), "kind is 'pool', expected 'conv'"),
        ("feature_names", np.array(["hw", "color"]), r"feature_names is \['hw', 'color'\]"),
        ("feature_names", np.array(["hw"]), "index of the trees is out of range"),
        ("base_names", np.array(["macs"] * len(base_names("conv"))), r"base_names has \['macs'\]"),
        ("weights", None, "'weights' is missing"),
        ("weights", np.ones(1), "weights are not finite numbers, one per base term"),
        ("weights", np.full(len(base_names("conv")), np.nan), "weights are not finite"),
        ("trees_baseline", np.array(np.inf), "baseline is not finite"),
    ],
)
def test_wrong_content_is_named(regressor, name, value, message):
    data = repacked(regressor.to_bytes(), **{name: value})
    with pytest.raises(PredictorError, match=message):
        Regressor.from_bytes(data, "conv", "here")


def test_a_file_older_than_a_base_term_predicts_as_it_did(regressor):
    """Terms are added to the base as more is learned; predictors of before stay valid."""
    names = list(base_names("conv"))
    newest = names.index("im2col")
    weights = np.delete(regressor.weights, newest)
    older = repacked(
        regressor.to_bytes(), base_names=np.delete(np.array(names), newest), weights=weights
    )
    read = Regressor.from_bytes(older, "conv", "here")
    without = replace(regressor, weights=np.insert(weights, newest, 0.0))
    assert np.array_equal(read.predict_us(KERNELS), without.predict_us(KERNELS))


def test_a_file_older_than_a_feature_predicts_as_it_did(regressor):
    names = view_of("conv").feature_names
    unused = len(names) - 1
    assert unused not in regressor.trees.feature
    older = repacked(regressor.to_bytes(), feature_names=np.array(names[:unused]))
    read = Regressor.from_bytes(older, "conv", "here")
    assert np.array_equal(read.predict_us(KERNELS), regressor.predict_us(KERNELS))


def test_damaged_trees_are_refused(regressor):
    trees = regressor.trees
    for broken, message in (
        (replace(trees, value=trees.value * np.nan), "not finite"),
        (replace(trees, left=trees.left + 5000), "out of range"),
        (replace(trees, right=trees.right[:, :-1]), "differ in shape"),
    ):
        with pytest.raises(PredictorError, match=message):
            Regressor.from_bytes(replace(regressor, trees=broken).to_bytes(), "conv", "here")


def test_pickled_content_is_never_read(regressor):
    stream = io.BytesIO()
    np.savez(stream, weights=np.array([{"a": 1}], dtype=object))
    with pytest.raises(PredictorError, match="not a readable kernel regressor"):
        Regressor.from_bytes(stream.getvalue(), "conv", "here")
