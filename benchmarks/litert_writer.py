"""Whether the INT8 TFLite models that are written directly are those of the official route.

Takes random subnets of the hyperspaces to TFLite twice: as plain torch networks through
litert-torch and ai-edge-quantizer's recipe static_wi8_ai8, and by
`nni_spaceevo.latency.tflite_graph`. Compares both operator by operator (name, inputs, output,
options), times both in turns with the LiteRT interpreter on one thread (least CPU time), and
writes `litert_writer.json` beside this script.

    pip install litert-torch==0.10.0 ai-edge-quantizer==0.10.0
    python benchmarks/litert_writer.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from provenance import provenance
from torch import Tensor, nn

from nni_spaceevo.files import to_json, write_atomically
from nni_spaceevo.hyperspace import (
    BlockConfig,
    ConvStep,
    ElasticStage,
    Hyperspace,
    LinearStep,
    PoolStep,
    SqueezeExciteStep,
    Step,
    block_kernels,
    load_hyperspace,
    recipe_of,
)
from nni_spaceevo.latency.tflite_graph import subnet_flatbuffer

try:
    import litert_torch
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe
except ImportError as error:
    raise SystemExit(
        f"this comparison needs {error.name}: "
        "pip install litert-torch==0.10.0 ai-edge-quantizer==0.10.0"
    ) from None

PACKAGES = ("litert-torch", "litert-converter", "ai-edge-quantizer", "ai-edge-litert", "torch")
DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "hyperspace.yaml"
# Hyperspace, input size, and the block type of the first searchable stage; the others follow in
# turn. At 176 and 208 pixels some strided convolutions meet odd sizes.
SUBNETS = (("onnxw", 176, 0), ("mobilew", 160, 0), ("mobilew", 208, 1), (str(DIGITS), 24, 0))
# ai-edge-quantizer 0.10.0 fails on larger float weights, such as those of wide dense 7x7 layers.
LARGEST_WEIGHT_BYTES = 32 * 2**20
CALIBRATION_IMAGES = 4
SESSIONS, WARMUP, RUNS = 6, 3, 8
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "swish": nn.SiLU,
    "hswish": nn.Hardswish,
    "hsigmoid": nn.Hardsigmoid,
}


# ---- the network in torch ---------------------------------------------------------------------


def convolution(step: ConvStep) -> nn.Module:
    """Convolution, BatchNorm where asked for, activation; padded as trained subnets are."""
    groups, k = step.cin if step.depthwise else 1, step.kernel_size
    conv = nn.Conv2d(step.cin, step.cout, k, step.stride, k // 2, groups=groups, bias=step.bias)
    norm = nn.BatchNorm2d(step.cout) if step.norm else nn.Identity()
    return nn.Sequential(conv, norm, ACTIVATIONS[step.activation]())


class SqueezeExcite(nn.Module):
    """Global pool, two 1x1 convolutions, product."""

    def __init__(self, step: SqueezeExciteStep) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *map(convolution, step.convs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to the same shape."""
        return x * self.gate(x)


def layer(step: Step) -> nn.Module:
    """One step of a recipe."""
    match step:
        case ConvStep():
            return convolution(step)
        case SqueezeExciteStep():
            return SqueezeExcite(step)
        case PoolStep():
            return nn.AdaptiveAvgPool2d(1)
        case LinearStep():
            return nn.Sequential(nn.Flatten(), nn.Linear(step.cin, step.cout))


class Block(nn.Module):
    """One block without quantizers, as a user would deploy it."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        found = recipe_of(config)
        self.main = nn.Sequential(*map(layer, found.main))
        self.residual = found.residual
        self.shortcut = convolution(found.shortcut) if found.shortcut else nn.Identity()
        self.activation = ACTIVATIONS[found.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, cin, h, w) to (n, cout, h', w')."""
        y = self.main(x)
        return self.activation(y + self.shortcut(x)) if self.residual else y


# ---- both models ------------------------------------------------------------------------------


def random_subnet(hyperspace: Hyperspace, first: int) -> tuple[BlockConfig, ...]:
    """A random subnet whose searchable stages take the block types in turn."""
    rng, types = np.random.default_rng(first), hyperspace.block_types
    blocks: list[BlockConfig] = []
    for stage in hyperspace.stages:
        option = stage.block
        if option is None:
            option, first = types[first % len(types)], first + 1
        elastic = ElasticStage(stage, option, stage.windows[0])
        cin = blocks[-1].cout if blocks else hyperspace.in_channels
        found = elastic.blocks(cin, elastic.random(rng))
        while max(map(largest_weight_bytes, found)) > LARGEST_WEIGHT_BYTES:
            found = elastic.blocks(cin, elastic.random(rng))
        blocks += found
    return tuple(blocks)


def largest_weight_bytes(config: BlockConfig) -> int:
    """Size of a block's largest weight in float32."""
    return max(4 * kernel.params for kernel in block_kernels(config, hw=1))


def official_flatbuffer(blocks: Sequence[BlockConfig], resolution: int) -> bytes:
    """The network through litert-torch and ai-edge-quantizer."""
    network = nn.Sequential(*map(Block, blocks)).eval()
    shape = (CALIBRATION_IMAGES, 1, resolution, resolution, blocks[0].cin)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    channels_last = litert_torch.to_channel_last_io(network, args=[0]).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "float.tflite")
        litert_torch.convert(channels_last, (images[0],)).export(path)
        ((signature, names),) = Interpreter(path).get_signature_list().items()
        tool = quantizer.Quantizer(path)
        tool.load_quantization_recipe(recipe.static_wi8_ai8())
        data = [{names["inputs"][0]: image.numpy()} for image in images]
        return bytes(tool.quantize(tool.calibrate({signature: data})).quantized_model)


def names_of(table: type) -> dict[int, str]:
    """Names of a schema's enumeration by number."""
    return {number: name for name, number in vars(table).items() if isinstance(number, int)}


def operators(model: bytes) -> list[str]:
    """Every operator with the types and shapes of its tensors, and its options."""
    parsed = schema.ModelT.InitFromPackedBuf(model)
    (graph,) = parsed.subgraphs
    builtins, types = names_of(schema.BuiltinOperator), names_of(schema.TensorType)

    def tensor(number: int) -> str:
        found = graph.tensors[number]
        shape = [] if found.shape is None else found.shape
        scales = None if found.quantization is None else found.quantization.scale
        many = scales is not None and len(scales) > 1
        per = f" per channel {found.quantization.quantizedDimension}" if many else ""
        return f"{types[found.type].lower()}[{','.join(map(str, shape))}]{per}"

    described = []
    for operator in graph.operators:
        code = parsed.operatorCodes[operator.opcodeIndex].builtinCode
        options = vars(operator.builtinOptions) if operator.builtinOptions else {}
        inputs = " ".join(map(tensor, operator.inputs))
        chosen = " ".join(f"{k}={int(v)}" for k, v in sorted(options.items()) if v)
        described.append(f"{builtins[code]} {inputs} -> {tensor(operator.outputs[0])} {chosen}")
    return described


def counted(described: list[str]) -> dict[str, int]:
    """Operators by name and type of the result."""
    return dict(Counter(f"{d.split()[0]}:{d.split(' -> ')[1].split('[')[0]}" for d in described))


# ---- timing -----------------------------------------------------------------------------------


def ready(model: bytes) -> Interpreter:
    """An interpreter on one thread with random inputs."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], rng.integers(-128, 128, entry["shape"], np.int8))
    return interpreter


def least_us(models: Sequence[bytes], rounds: int) -> list[float]:
    """Least CPU time of each model in microseconds, taken in turns.

    CPU time, as LiteRT computes on the calling thread and other jobs may share the core. New
    interpreters in another order even out where in memory each happens to lie.
    """
    best = [float("inf")] * len(models)
    for session in range(SESSIONS):
        order = [*range(len(models))][:: 1 if session % 2 else -1]
        calls = [(i, ready(models[i]).invoke) for i in order]
        for _ in range(rounds):
            for i, call in calls:
                for run in range(WARMUP + RUNS):
                    start = time.thread_time_ns()
                    call()
                    taken = (time.thread_time_ns() - start) / 1e3
                    best[i] = min(best[i], taken) if run >= WARMUP else best[i]
    return best


def partitions(model: bytes) -> int:
    """XNNPACK delegates that the interpreter makes of a model."""
    return sum(op["op_name"] == "DELEGATE" for op in ready(model)._get_ops_details())


def compared(name: str, resolution: int, first: int, rounds: int) -> dict[str, object]:
    """Both models of one subnet: operators, differences, latencies."""
    hyperspace = load_hyperspace(name)
    blocks = random_subnet(hyperspace, first)
    start = time.perf_counter()
    official = official_flatbuffer(blocks, resolution)
    converted = time.perf_counter()
    own = subnet_flatbuffer(blocks, resolution, np.random.default_rng(0))
    written = time.perf_counter()
    lists = {"official": operators(official), "own": operators(own)}
    only = [
        Counter(lists[a]) - Counter(lists[b]) for a, b in (("official", "own"), ("own", "official"))
    ]
    official_us, own_us = least_us([official, own], rounds)
    return {
        "hyperspace": hyperspace.name,
        "resolution": resolution,
        "block_types": list(dict.fromkeys(b.type for b in blocks)),
        "operators": {kind: counted(found) for kind, found in lists.items()},
        "only_official": sorted(only[0].elements()),
        "only_own": sorted(only[1].elements()),
        "same_order": lists["official"] == lists["own"],
        "xnnpack_partitions": {"official": partitions(official), "own": partitions(own)},
        "seconds_to_make": {
            "official": round(converted - start, 2),
            "own": round(written - converted, 3),
        },
        "official_us": round(official_us, 1),
        "own_us": round(own_us, 1),
        "own_to_official": round(own_us / official_us, 4),
    }


def main() -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="visits to each model in a session")
    options = parser.parse_args()
    torch.manual_seed(0)
    found = [compared(*subnet, options.rounds) for subnet in SUBNETS]
    result = {
        **provenance(*PACKAGES),
        "subnets": found,
    }
    write_atomically(Path(__file__).with_suffix(".json"), to_json(result))
    print(
        f"{'subnet':<16}{'operators':>10}{'differ':>8}{'official us':>13}{'own us':>9}{'ratio':>8}"
    )
    for row in found:
        differ = len(row["only_official"]) + len(row["only_own"])
        count = sum(row["operators"]["own"].values())
        name = f"{row['hyperspace']} {row['resolution']}"
        times = f"{row['official_us']:>13}{row['own_us']:>9}{row['own_to_official']:>8.3f}"
        print(f"{name:<16}{count:>10}{differ:>8}{times}")


if __name__ == "__main__":
    main()
