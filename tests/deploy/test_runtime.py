"""What a runtime makes of a file, and how answers are compared."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from nni_spaceevo.deploy.runtime import agreement, operators
from nni_spaceevo.errors import DeviceError


class First(nn.Module):
    """Logits are the first three pixels, some of them doubled."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3] * torch.tensor([1.0, 1.0, 2.0])


def identity(path: Path, batch: int | str) -> Path:
    """A file whose logits are the first three pixels."""
    shapes = [batch, 3, 1, 1], [batch, 3]
    names = zip(("input", "logits"), shapes, strict=True)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in names]
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["logits"])], "g", values[:1], values[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", [1, "batch"])
def test_answers_are_compared_image_by_image(tmp_path: Path, batch: int | str) -> None:
    images = torch.tensor([[3.0, 1, 1], [1, 3, 1], [0, 2, 1.5], [0, 0, 1]]).view(4, 3, 1, 1)
    labels = torch.tensor([0, 1, 1, 0])
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    found = agreement(identity(tmp_path / "m.onnx", batch), First(), batches)
    assert found.images == 4
    assert found.same == 0.75  # The third one: 2 against 1.5 or 3.
    assert (found.accuracy, found.network_accuracy) == (0.75, 0.5)
    assert found.largest_difference == pytest.approx(1.5)
    without = agreement(identity(tmp_path / "m.onnx", batch), First(), [(images, None)])
    assert (without.accuracy, without.network_accuracy, without.same) == (None, None, 0.75)


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeviceError, match=r"broken\.onnx: ONNX Runtime cannot read it"):
        agreement(path, First(), [])


def test_operators_in_float_come_with_a_reason(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("HardSigmoid", ["x"], ["y"])], "g", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = operators(model)
    assert found.in_float == {"HardSigmoid": 1}
    assert "no INT8 kernel" in found.reasons["HardSigmoid"]
