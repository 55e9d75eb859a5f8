"""Libraries of the extras that import others in turn."""

import sys
from importlib import import_module
from types import ModuleType


def import_beside_torchvision(name: str) -> ModuleType:
    """Import a library that uses torchvision where there is one, and does well without.

    A torchvision that was built for another torch, or lacks what it needs, cannot be imported, and would take
    transformers and torchmetrics along; so it is hidden from them.
    """
    try:
        import_module("torchvision")
    except Exception as error:
        if not isinstance(error, ModuleNotFoundError) or error.name != "torchvision":
            for module in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
                del sys.modules[module]
            sys.modules["torchvision"] = None  # type: ignore[assignment]  # as Python marks what is not to be found
    return import_module(name)
