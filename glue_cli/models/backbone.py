"""What of a model is its backbone, which a pretrained start has to have, and what is its head, which it may lack."""

from collections.abc import Callable
from typing import Any

from torch import nn

from glue_cli.models.libraries.transformers_names import is_of_transformers


def backbone_of(model: nn.Module) -> Callable[[str], bool]:
    """Return what tells whether a tensor of this name belongs to the model's backbone.

    In transformers the backbone is what lies under `base_model_prefix`, in timm all but the `classifier` of the
    model's `pretrained_cfg`; in other models all but the last linear layer.
    """
    own: Any = model
    if is_of_transformers(model):
        prefix = own.base_model_prefix
        is_bare = not prefix or not hasattr(own, prefix)
        return lambda name: is_bare or name.startswith(f"{prefix}.")
    heads = _classifiers(own) or [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    return lambda name: not any(name.startswith(f"{head}.") for head in heads)


def _classifiers(model: Any) -> list[str]:
    """Return what timm calls a model's head; nothing where it is not one of timm's."""
    config = getattr(model, "pretrained_cfg", None)
    named = config.get("classifier") if isinstance(config, dict) else None
    return [named] if isinstance(named, str) else [str(name) for name in named or ()]
