from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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


@pytest.mark.parametrize("hw", [1, 2, 5, 6, 7, 14, 15])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_windows_inside_and_rows_read_are_those_that_torch_sees(hw, size, stride):
    ones = torch.ones(1, 1, hw, hw)
    row = F.conv2d(
        ones[:, :, :1], torch.ones(1, 1, 1, size), stride=(1, stride), padding=(0, size // 2)
    )
    columns = Columns([RuntimeKernel("conv", hw, 8, 8, size, stride)])
    assert columns.inner[0] == int((row == size).sum())
    assert columns.rows_read[0] == int(row.sum())
    terms = dict(zip(base_names("conv"), base_terms("conv", columns)[0], strict=True))
    parts = terms["inner_macs_by_8"] + terms["border_macs_by_8"]
    assert parts == pytest.approx(int(row.sum()) * size * row.shape[-1] * 8 * 8 / 1e3)
    assert (terms["border_macs_by_8"] == 0) == (columns.inner[0] == row.shape[-1])


@pytest.mark.parametrize(("hw", "size", "stride"), [(1, 3, 1), (5, 7, 1), (6, 5, 2), (14, 3, 2)])
def test_products_with_what_lies_outside_cost_unless_it_is_zero(hw, size, stride):
    ones, filters = torch.ones(1, 1, hw, hw), torch.ones(1, 1, size, size)
    inside = F.conv2d(ones, filters, stride=stride, padding=size // 2)
    outside = inside.numel() * size**2 - int(inside.sum())
    kernels = [RuntimeKernel("conv", hw, 24, 16, size, stride, positive=p) for p in (False, True)]
    for kind, of_one in (("conv", outside * 24 * 16), ("dwconv", outside * 16)):
        terms = base_terms(kind, Columns([replace(k, type=kind) for k in kernels]))
        found = terms[:, base_names(kind).index("outside_macs")]
        assert found.tolist() == [pytest.approx(of_one / 1e3), 0]


def test_weights_are_told_cold_from_a_million_of_floats_on():
    columns = Columns([RuntimeKernel("conv", 7, c, 1000, 1) for c in (999, 1000, 4000)])
    terms = base_terms("conv", columns)
    of_floats, of_integers = (base_names("conv").index(f"weights_from_{m}m") for m in (1, 4))
    assert terms[:, of_floats].tolist() == [0, 1e3, 4e3]
    assert terms[:, of_integers].tolist() == [0, 0, 4e3]


def test_strided_output_is_rounded_up():
    assert Columns([RuntimeKernel("conv", 15, 8, 8, 3, 2)]).pixels[0] == 64


def test_an_activation_computed_within_a_kernel_is_a_term_of_its_own():
    columns = Columns([RuntimeKernel("conv", 4, 8, 8, 3, activation=a) for a in ("none", "hswish")])
    terms = base_terms("conv", columns)[:, base_names("conv").index("activated")]
    assert terms.tolist() == [0, 4 * 4 * 8 / 1e3]
