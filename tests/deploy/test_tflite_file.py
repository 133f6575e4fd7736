"""A subnet as a TFLite file is the trained one, and has the integers of the ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from supernet.tiny import OPTIONS, tiny_hyperspace, uniform, used_supernet

from nni_spaceevo.deploy.learned import Blocks, range_at
from nni_spaceevo.deploy.sessions import open_session
from nni_spaceevo.deploy.tflite_file import TFLiteModel, tflite_model
from nni_spaceevo.errors import QuantizationError
from nni_spaceevo.latency.graph import Precision
from nni_spaceevo.latency.tflite_graph import flatbuffer_metadata
from nni_spaceevo.quant import FP32, INT8, set_precision
from nni_spaceevo.supernet.model import Subnet, Supernet

from .test_onnx_file import exported as onnx_exported
from .test_onnx_file import images, trained

pytest.importorskip("ai_edge_litert", reason="TFLite needs the extra [litert]")

from nni_spaceevo.latency.devices.litert import interpreter_of

each_option = pytest.mark.parametrize("name", OPTIONS)


def blocks_of(subnet: Subnet, supernet: Supernet) -> Blocks:
    return supernet.hyperspace.subnet_blocks(supernet.space, subnet.code)


def exported(subnet: Subnet, supernet: Supernet, precision: Precision = "int8") -> TFLiteModel:
    return tflite_model(subnet, blocks_of(subnet, supernet), subnet.code.resolution, precision)


def answers(model: TFLiteModel, x: torch.Tensor, folder: Path) -> torch.Tensor:
    path = folder / "subnet.tflite"
    path.write_bytes(model.content)
    return torch.from_numpy(open_session(path).logits(x.numpy()))


@each_option
def test_litert_computes_what_torch_computes(name: str, tmp_path: Path) -> None:
    hyperspace = tiny_hyperspace(OPTIONS[name])
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    subnet = trained(supernet, supernet.largest)
    x = images(supernet.largest, 64)
    with torch.no_grad():
        expected = subnet(x)
    found = answers(exported(subnet, supernet), x, tmp_path)
    # A network of random weights makes much of an activation that is rounded to its neighbour.
    assert (found - expected).abs().mean() < 0.1 * expected.std()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.85
    set_precision(subnet, FP32)
    with torch.no_grad():
        expected = subnet(x)
    found = answers(exported(subnet, supernet, "float32"), x, tmp_path)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def constants(model: TFLiteModel) -> list[np.ndarray]:
    """What a model has of INT8 weights and of biases, each as sorted numbers."""
    interpreter = interpreter_of(model.content)
    computed = {i for op in interpreter._get_ops_details() for i in op["outputs"]}
    found = (d for d in interpreter.get_tensor_details() if d["index"] not in computed)
    return [
        np.sort(interpreter.get_tensor(d["index"]).ravel())
        for d in found
        if d["name"] != "input" and d["dtype"] in (np.int8, np.int32)
    ]


def test_weights_and_biases_are_the_integers_of_the_onnx_file() -> None:
    option = OPTIONS["onnxw-resnet"]
    hyperspace = tiny_hyperspace(option)
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    subnet = trained(supernet, supernet.largest)
    written = {part.tobytes() for part in constants(exported(subnet, supernet))}
    arrays = [
        onnx.numpy_helper.to_array(part)
        for part in onnx_exported(subnet, supernet, "int8").graph.initializer
    ]
    weights = [a for a in arrays if a.dtype == np.int8 and a.ndim > 1]
    biases = [a for a in arrays if a.dtype == np.int32 and a.any()]
    assert len(weights) == len(biases) > 10
    # The bias of the logits is a float one.
    for part in (*weights, *biases[:-1]):
        assert np.sort(part.ravel()).tobytes() in written


def test_only_the_logits_are_float_and_ranges_that_are_not_the_learned_ones_are_told() -> None:
    hyperspace = tiny_hyperspace(OPTIONS["mobilew-mbv3_res"])
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    subnet = supernet.extract(supernet.smallest)
    found = exported(subnet, supernet)
    assert found.operators.in_float == {"FULLY_CONNECTED": 1}
    assert "logits have no learned range" in found.operators.reasons["FULLY_CONNECTED"]
    # The image in, the last feature out.
    assert found.operators.conversions == 2
    swishes = found.operators.integer["LOGISTIC"]
    assert found.demanded["LOGISTIC"].startswith(f"{swishes} in the file: ")
    assert found.demanded["hard sigmoid"].startswith("2 in the file: ")
    floats = exported(subnet, supernet, "float32")
    assert (floats.operators.integer, floats.operators.conversions, floats.demanded) == ({}, 0, {})
    assert floats.operators.in_float["LOGISTIC"] == swishes


def test_ranges_are_the_learned_ones_less_128() -> None:
    hyperspace = tiny_hyperspace()
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    subnet = supernet.extract(supernet.smallest)
    interpreter = interpreter_of(exported(subnet, supernet).content)
    details = {d["index"]: d["quantization"] for d in interpreter.get_tensor_details()}
    found = [details[op["outputs"][0]] for op in interpreter._get_ops_details()]
    scale, zero = range_at(subnet, "image")
    assert found[0] == (pytest.approx(scale), zero - 128)
    scale, zero = range_at(subnet, "stages.feature_mix.0.layers.conv.activations.relu.after")
    assert (pytest.approx(scale), zero - 128) in found


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    hyperspace = tiny_hyperspace()
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    subnet = supernet.extract(supernet.smallest)
    about = {"space": str(supernet.space), "mean": "(0.5,)"}
    model = tflite_model(subnet, blocks_of(subnet, supernet), 8, about=about)
    assert flatbuffer_metadata(model.content) == about
    path = tmp_path / "subnet.tflite"
    path.write_bytes(model.content)
    session = open_session(path)
    assert [(given.name, given.shape) for given in session.inputs] == [("input", (1, 8, 8, 1))]
    assert (session.image, session.classes) == ((1, 8), 4)


def test_weights_that_were_never_quantized_are_refused_by_name() -> None:
    hyperspace = tiny_hyperspace()
    supernet = used_supernet(hyperspace, uniform(hyperspace), FP32)
    with pytest.raises(QuantizationError, match="quantizer image has no range; expected weights"):
        exported(supernet.extract(supernet.largest), supernet)
