"""Tell a model's backbone, whose weights a pretrained start must have, from its head, whose weights may be missing."""

from collections.abc import Callable
from typing import Any

from torch import nn

from glue_cli.models.libraries.transformers_names import is_of_transformers


def backbone_of(model: nn.Module) -> Callable[[str], bool]:
    """Return a function that tells whether a tensor, by its name, belongs to the model's backbone.

    For transformers, the backbone is everything under `base_model_prefix`; for timm, everything except the
    `classifier` in the model's `pretrained_cfg`; for other models, everything except the last linear layer.
    """
    own: Any = model
    if is_of_transformers(model):
        prefix = own.base_model_prefix
        is_bare = not prefix or not hasattr(own, prefix)
        return lambda name: is_bare or name.startswith(f"{prefix}.")
    heads = _classifiers(own) or [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    return lambda name: not any(name.startswith(f"{head}.") for head in heads)


def _classifiers(model: Any) -> list[str]:
    """Return the names of the head's modules in a timm model; nothing for other models."""
    config = getattr(model, "pretrained_cfg", None)
    named = config.get("classifier") if isinstance(config, dict) else None
    return [named] if isinstance(named, str) else [str(name) for name in named or ()]
