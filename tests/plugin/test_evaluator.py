"""What a trial of a NAS experiment reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest

from nni_spaceevo.errors import ConfigError, ConstraintError, LUTError
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.plugin.evaluator import SpaceScoreEvaluator, checked_scoring
from nni_spaceevo.plugin.model_space import FrozenSpace
from nni_spaceevo.search import QTConfig, qt_score
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
CODE = HYPERSPACE.space("synthetic-012-201")


@pytest.fixture(scope="module")
def lut() -> QuantizedLUT:
    return synthetic_lut(HYPERSPACE, CODE)


def test_a_trial_reports_curve_score_and_columns(lut: QuantizedLUT) -> None:
    evaluator = SpaceScoreEvaluator(lut, [1.5])
    model = FrozenSpace(CODE, HYPERSPACE.parameters(CODE), evaluator, 40, [0.5, 0.75])
    with evaluator.mock_runtime(model):
        metrics = model.execute()
    expected = qt_score(lut, CODE, QTConfig(constraints_ms=(1.5,)))
    assert model.metrics.intermediates == [0.5, 0.75]
    assert model.metric == expected.score
    assert metrics == {
        "default": expected.score,
        "space": "synthetic-012-201",
        "share_within_T": expected.shares[0],
        "top_loss": expected.top_losses[0],
        "min_ms": expected.min_ms,
        "max_ms": expected.max_ms,
        "blocks": "mbv1_dual | mbv2_res | resnet",
        "windows": "24, 32 | 8, 16 | 16, 24",
        "evaluations": 40,
    }
    # NNI's page cannot show anything else.
    assert all(isinstance(value, str | float | int) for value in metrics.values())


def test_each_of_several_constraints_has_its_score(lut: QuantizedLUT) -> None:
    metrics = SpaceScoreEvaluator(lut, [1.5, 2.0], t=0.5).metrics(CODE)
    parts = [qt_score(lut, CODE, QTConfig(constraints_ms=(T,), t=0.5)).score for T in (1.5, 2.0)]
    assert [metrics["qt_score_1.5ms"], metrics["qt_score_2ms"]] == pytest.approx(parts, rel=1e-3)
    assert metrics["default"] == pytest.approx(sum(parts), rel=1e-3)
    assert {"share_within_1.5ms", "top_loss_within_2ms"} <= metrics.keys()


def test_it_works_without_nni_and_takes_any_iterable(lut: QuantizedLUT) -> None:
    for constraints in ((1.5,), np.array([1.5]), iter([1.5])):
        evaluator = SpaceScoreEvaluator(lut, constraints)
        assert evaluator.metrics(CODE)["default"] > 0
    assert repr(evaluator) == "SpaceScoreEvaluator(synthetic, T = [1.5] ms)"


def test_it_reads_its_lut_when_it_is_needed(lut: QuantizedLUT, tmp_path: Path) -> None:
    lut.save(tmp_path / "some.lut")
    evaluator = SpaceScoreEvaluator(tmp_path / "some.lut", [1.5], hyperspace=HYPERSPACE, top=20)
    text = nni.dump(evaluator)
    assert "__nni_obj__" not in text
    (tmp_path / "some.lut").rename(tmp_path / "away.lut")
    loaded = nni.load(text)
    with pytest.raises(LUTError, match="no such LUT"):
        loaded.evaluate(CODE)
    (tmp_path / "away.lut").rename(tmp_path / "some.lut")
    assert loaded.metrics(CODE) == evaluator.metrics(CODE)


def test_a_lut_in_memory_cannot_go_to_another_process(lut: QuantizedLUT) -> None:
    with pytest.raises(ConfigError, match="give the LUT as its file"):
        nni.dump(SpaceScoreEvaluator(lut, [1.5]))


def _mistakes() -> Iterator[Any]:
    other = synthetic_hyperspace(4, "other")
    yield [0.001], {}, ConstraintError, "T = 0.001 ms is below the fastest subnet"
    yield [900], {}, ConstraintError, "T = 900 ms is above the slowest subnet"
    yield 1.5, {}, ConfigError, "constraints_ms: expected a list of ms, given 1.5"
    yield [], {}, ConfigError, "constraints_ms must be at least one latency"
    yield ["fast"], {}, ConfigError, r"Expected `float`, got `str` - at `\$\.constraints_ms"
    yield [1.5], {"smaples": 9}, ConfigError, "unknown field `smaples`; allowed keys: constraints"
    yield [1.5], {"top": 0}, ConfigError, "top within 1 to samples"
    yield [1.5], {"hyperspace": other}, LUTError, "made for hyperspace 'synthetic'.*given 'other'"


@pytest.mark.parametrize(("constraints", "settings", "error", "message"), list(_mistakes()))
def test_a_mistake_is_told_before_any_trial(
    lut: QuantizedLUT, constraints: Any, settings: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SpaceScoreEvaluator(lut, constraints, **settings)


def test_a_file_needs_its_hyperspace_and_latencies(lut: QuantizedLUT, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"some\.lut: give the hyperspace"):
        checked_scoring(tmp_path / "some.lut", [1.5])
    with pytest.raises(LUTError, match=r"some\.lut: no such LUT"):
        checked_scoring(tmp_path / "some.lut", [1.5], HYPERSPACE)
    rows = [lut.row(i) for i in range(len(lut))]
    with pytest.raises(LUTError, match="no latencies yet; price it"):
        checked_scoring(QuantizedLUT.from_rows(HYPERSPACE, rows, "synthetic"), [1.5])
