"""Import optional libraries that import torchvision, whether or not it works here."""

import logging
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

# Where torchao is installed, transformers imports it, and it tells of kernels and of torch's internals each time.
_TALKATIVE = ("torchao", "torch.utils._pytree")


def import_beside_torchvision(name: str) -> ModuleType:
    """Import a library, such as transformers, that uses torchvision if it is there and works without it.

    If torchvision cannot be imported, for example because it was built for another torch, it is hidden from the
    library; otherwise the library's own import would fail too.
    """
    for logger in _TALKATIVE:
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        import_module("torchvision")
    except Exception as error:
        if not isinstance(error, ModuleNotFoundError) or error.name != "torchvision":
            for module in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
                del sys.modules[module]
            sys.modules["torchvision"] = None  # type: ignore[assignment]  # Python's mark for "no such module"
    return import_module(name)


def import_with_torchvision(name: str) -> ModuleType:
    """Import a library, such as torchmetrics, that imports any installed torchvision but uses none of its operators.

    torchmetrics looks for the installed package, not for the module, so torchvision cannot be hidden from it. With
    torch for the CPU, a torchvision for CUDA fails because two operators are not declared; they are declared here,
    without an implementation.
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
    """Declare the operators that torchvision's import needs; they exist as long as the returned object does."""
    import torch

    for module in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[module]
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
