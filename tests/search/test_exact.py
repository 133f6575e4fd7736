"""The exact score: brute force, convolution, what the published estimator tends to, properties."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import published_lut

from nni_spaceevo.hyperspace import Hyperspace, SpaceCode
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.search import ExactScorer, QTConfig, SampledScorer, exact
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
BEST = HYPERSPACE.space("synthetic-120-201")
LUT = synthetic_lut(HYPERSPACE, BEST)
CONFIG = QTConfig(constraints_ms=(1.5,), samples=5000, top=50)
# The authors' spaces and the scores that their own procedure gives them (field notes, section 7).
PUBLISHED = [
    ("onnxw-151122-023231", 10.0, 0.378),
    ("onnxw-151122-023231", 15.0, 0.426),
    ("onnxw-121122-133333", 20.0, 0.454),
]


def brute_force(lut: QuantizedLUT, code: SpaceCode, config: QTConfig) -> float:
    """The score of a space from the list of all its subnets."""
    resolutions = lut.hyperspace.distill_resolutions
    rows = []
    for resolution in resolutions:
        cells = [
            list(zip(*(v.tolist() for v in lut.cell(s, b, w, resolution)), strict=True))
            for s, (b, w) in enumerate(zip(code.blocks, code.windows, strict=True))
        ]
        weight = 1 / (math.prod(map(len, cells)) * len(resolutions))
        for subnet in itertools.product(*cells):
            latency = lut.other_ms(resolution) + sum(ms for _, ms in subnet)
            rows.append((sum(loss for loss, _ in subnet), latency, weight))
    (T,) = config.constraints_ms
    within = sorted((loss, weight) for loss, latency, weight in rows if latency <= T)
    share = sum(weight for _, weight in within)
    left = tail = min(share, config.top / config.samples)
    total = 0.0
    for loss, weight in within:
        total += min(weight, left) * loss
        left -= min(weight, left)
    found = 1 - math.exp(-config.samples * share)
    return found / (max(1, (config.t / (share + 1e-5)) ** config.a) * total / tail)


@pytest.mark.parametrize("T", [0.7, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("code", ["synthetic-120-201", "synthetic-012-120"])
def test_few_subnets_are_scored_as_by_brute_force(code, T):
    space, config = HYPERSPACE.space(code), replace_config(constraints_ms=(T,), a=0.3)
    expected = brute_force(LUT, space, config)
    assert ExactScorer(LUT, config)(space).score == pytest.approx(expected, rel=1e-6)


def replace_config(**changes):
    return QTConfig(**{f: getattr(CONFIG, f) for f in CONFIG.__struct_fields__} | changes)


@pytest.mark.parametrize("T", [1.0, 1.5, 2.5])
def test_convolving_gives_what_enumerating_gives(monkeypatch, T):
    config = replace_config(constraints_ms=(T,), top=200)
    enumerated = ExactScorer(LUT, config)(BEST)
    monkeypatch.setattr(exact, "_FEW", 0)
    convolved = ExactScorer(LUT, config)(BEST)
    # The latencies of this LUT are equally spaced: many subnets lie within a step of T.
    assert convolved.shares == pytest.approx(enumerated.shares, rel=0.05)
    assert convolved.top_losses == pytest.approx(enumerated.top_losses, rel=2e-3)
    assert convolved.score == pytest.approx(enumerated.score, rel=2e-3)


@pytest.mark.parametrize(("code", "T", "score"), PUBLISHED)
def test_published_spaces_score_what_the_authors_procedure_gives(code, T, score):
    lut = published_lut("onnxw")
    config = QTConfig(constraints_ms=(T,), estimator="sampled")
    space = lut.hyperspace.space(code)
    assert SampledScorer(lut, config)(space).score == pytest.approx(score, abs=0.01)
    assert ExactScorer(lut, config)(space).score == pytest.approx(score, abs=0.01)


@pytest.mark.parametrize(("code", "T", "_"), PUBLISHED)
def test_samples_converge_to_it(code, T, _):
    lut = published_lut("onnxw")
    space = lut.hyperspace.space(code)
    truth = ExactScorer(lut, QTConfig(constraints_ms=(T,)))(space).top_losses[0]
    errors = []
    # The best share is the same, 1 in 2,000; what is left is the luck of few samples.
    for thousands in (40, 400):
        config = {"samples": 1000 * thousands, "top": thousands // 2}
        losses = [
            SampledScorer(lut, QTConfig(constraints_ms=(T,), seed=seed, **config))(
                space
            ).top_losses[0]
            for seed in range(6)
        ]
        errors.append(np.mean(losses) - truth)
        spread = np.std(losses, ddof=1) / math.sqrt(len(losses))
    assert abs(errors[1]) < 3 * spread + 5e-4 * truth
    assert abs(errors[1]) < abs(errors[0]) + spread


def test_a_finer_grid_changes_nothing_that_matters(monkeypatch):
    lut = published_lut("onnxw")
    space = lut.hyperspace.space("onnxw-151122-023231")
    config = QTConfig(constraints_ms=(10.0, 15.0))
    coarse = ExactScorer(lut, config)(space)
    monkeypatch.setattr(exact, "_LATENCY_BINS", 2 * exact._LATENCY_BINS)
    monkeypatch.setattr(exact, "_LOSS_BINS", 2 * exact._LOSS_BINS)
    fine = ExactScorer(lut, config)(space)
    assert coarse.score == pytest.approx(fine.score, rel=2e-4)
    assert coarse.shares == pytest.approx(fine.shares, rel=2e-3)


# ---- properties ----------------------------------------------------------------------------------

spaces = st.builds(
    lambda *digits: HYPERSPACE.space(f"synthetic-{''.join(digits[:3])}-{''.join(digits[3:])}"),
    *[st.sampled_from("012")] * 6,
)


def changed(lut: QuantizedLUT, **columns: np.ndarray) -> QuantizedLUT:
    return replace(lut, columns=lut.columns | columns)


@settings(max_examples=25)
@given(spaces, st.floats(0.8, 2.5), st.floats(0.001, 2), st.integers(0, 10_000))
def test_the_score_falls_when_any_loss_rises(space, T, more, row):
    config = replace_config(constraints_ms=(T,))
    before = ExactScorer(LUT, config)(space).score
    loss = LUT.columns["loss"].copy()
    loss[row % len(loss)] += more
    assert ExactScorer(changed(LUT, loss=loss), config)(space).score <= before * (1 + 1e-9)


@settings(max_examples=25)
@given(spaces, st.floats(0.8, 2.5), st.floats(0, 0.7))
def test_the_score_never_rises_when_the_constraint_tightens(space, T, less):
    loose, tight = (
        ExactScorer(LUT, replace_config(constraints_ms=(limit,)))(space) for limit in (T, T - less)
    )
    # With less than the tail within T all of it is averaged, as published: then it may rise.
    if tight.shares[0] >= CONFIG.top / CONFIG.samples:
        assert tight.score <= loose.score * (1 + 1e-9)


@settings(max_examples=10)
@given(spaces, st.permutations(range(3)), st.floats(0.8, 2.5))
def test_block_types_can_be_relabelled(space, order, T):
    fields = {f: getattr(HYPERSPACE, f) for f in HYPERSPACE.__struct_fields__}
    types = tuple(HYPERSPACE.block_types[i] for i in order)
    other = Hyperspace(**fields | {"block_types": types})
    rows = [LUT.row(i) for i in range(len(LUT))]
    moved = [replace(row, block=order.index(row.block)) for row in rows]
    lut = QuantizedLUT.from_rows(other, moved, "synthetic")
    # Latencies are set by place in a cell, and cells keep theirs.
    by_row = {
        (r.stage, r.window, r.resolution, r.cin, r.chain, r.loss): i for i, r in enumerate(rows)
    }
    latency = np.array(
        [
            LUT.columns["latency_ms"][
                by_row[r.stage, r.window, r.resolution, r.cin, r.chain, r.loss]
            ]
            for r in map(lut.row, range(len(lut)))
        ]
    )
    header = lut.header.__class__(
        **{f: getattr(lut.header, f) for f in lut.header.__struct_fields__}
        | {"other_ms": LUT.header.other_ms}
    )
    lut = replace(lut, header=header, columns=lut.columns | {"latency_ms": latency})
    renamed = SpaceCode(space.hyperspace, tuple(map(order.index, space.blocks)), space.windows)
    config = replace_config(constraints_ms=(T,))
    expected = ExactScorer(LUT, config)(space).score
    assert ExactScorer(lut, config)(renamed).score == pytest.approx(expected, rel=1e-9)
