"""SpaceEvo for NNI: search spaces designed for one device's INT8 inference.

The names below are loaded when first used, so that importing the package stays fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Hyperspace": "hyperspace",
    "load_hyperspace": "hyperspace",
    "SpaceCode": "hyperspace",
    "SubnetCode": "hyperspace",
    "QuantizedLUT": "lut",
    "load_predictor": "latency",
    "SpaceEvoError": "errors",
    "SpaceEvoTuner": "plugin.tuner",
    "SpaceEvo": "plugin.strategy",
    "HyperspaceModelSpace": "plugin.model_space",
    "SpaceScoreEvaluator": "plugin.evaluator",
    "SubnetModelSpace": "plugin.subnet_space",
    "QuantizedSupernet": "plugin.quantized_supernet",
    "SEQnetSearch": "plugin.subnet_strategy",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
