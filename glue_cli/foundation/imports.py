"""Libraries of the extras that import others in turn."""

import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any


def import_beside_torchvision(name: str) -> ModuleType:
    """Import a library that uses torchvision where there is one, and does well without.

    A torchvision that was built for another torch, or lacks what it needs, cannot be imported, and would take
    transformers along; so it is hidden from it.
    """
    try:
        import_module("torchvision")
    except Exception as error:
        if not isinstance(error, ModuleNotFoundError) or error.name != "torchvision":
            for module in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
                del sys.modules[module]
            sys.modules["torchvision"] = None  # type: ignore[assignment]  # as Python marks what is not to be found
    return import_module(name)


def import_with_torchvision(name: str) -> ModuleType:
    """Import a library that imports torchvision wherever one is installed, and needs none of its operators.

    torchmetrics asks for the package, not the module, so that a torchvision cannot be hidden from it. One for CUDA
    beside a torch for the CPU fails for want of two schemas; they are declared here, with nothing behind them.
    """
    try:
        import_module("torchvision")
    except ModuleNotFoundError:
        pass
    except RuntimeError as error:
        if "operator torchvision::" in str(error):
            _declare_operators()
    return import_module(name)


@cache
def _declare_operators() -> object:
    """Declare the operators that torchvision's import asks for; they are gone when what is returned is."""
    import torch

    for module in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[module]
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
