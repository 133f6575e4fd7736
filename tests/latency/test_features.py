from __future__ import annotations

import numpy as np
import pytest

from nni_spaceevo.latency.features import (
    FEATURE_NAMES,
    Columns,
    base_names,
    base_terms,
    residual_features,
)
from nni_spaceevo.latency.lowering import ACTIVATED, ACTIVATIONS, PLAIN, RuntimeKernel

KERNEL_TYPES = (*ACTIVATED, *PLAIN, *ACTIVATIONS)


@pytest.mark.parametrize("kind", KERNEL_TYPES)
def test_shapes_and_signs(kind):
    kernels = [
        RuntimeKernel(kind, hw, c, c, squeezed=8 * (kind == "se")) for hw, c in ((1, 8), (7, 24))
    ]
    columns = Columns(kernels)
    terms = base_terms(kind, columns)
    assert terms.shape == (2, len(base_names(kind)))
    assert np.isfinite(terms).all() and (terms >= 0).all()
    rows = residual_features(columns, np.ones(2))
    assert rows.shape == (2, len(FEATURE_NAMES))
    assert np.isfinite(rows).all()


def test_work_is_padded_to_vectors_of_16_channels_and_4_bytes():
    columns = Columns([RuntimeKernel("conv1x1", 1, 5, 17), RuntimeKernel("conv1x1", 1, 8, 32)])
    macs = base_terms("conv1x1", columns)[:, base_names("conv1x1").index("padded_macs")]
    assert macs[0] == macs[1] == pytest.approx(8 * 32 / 1e3)


def test_depthwise_work_does_not_grow_with_the_square_of_the_width():
    narrow, wide = (Columns([RuntimeKernel("dwconv", 8, c, c, 3)]) for c in (16, 32))
    place = base_names("dwconv").index("padded_macs")
    assert base_terms("dwconv", wide)[0, place] == 2 * base_terms("dwconv", narrow)[0, place]
    assert wide.weights[0] == 32 * 9


def test_strided_output_is_rounded_up():
    assert Columns([RuntimeKernel("conv", 15, 8, 8, 3, 2)]).pixels[0] == 64


def test_an_activation_computed_within_a_kernel_is_a_term_of_its_own():
    columns = Columns([RuntimeKernel("conv", 4, 8, 8, 3, activation=a) for a in ("none", "hswish")])
    terms = base_terms("conv", columns)[:, base_names("conv").index("activated")]
    assert terms.tolist() == [0, 4 * 4 * 8 / 1e3]
