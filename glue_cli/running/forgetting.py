"""Modules that keep what they have computed of their weights, while the weights change."""

from typing import Any

from torch import nn

# Whose train() forgets nothing: torch's own, and the one that every model of transformers has, at the top.
_PLAIN = ("torch.nn.modules.module", "transformers.modeling_utils")


def let_forget(model: nn.Module) -> None:
    """Let modules forget what they keep of their weights, before each of their forward passes; copies do so too.

    What a module keeps in eval mode it forgets in train(): timm's LeViT, TinyViT, EfficientFormer and EfficientViT
    keep the biases of their attention. The flags of all modules and parameters stay as they are.
    """
    for module in model.modules():
        if type(module).train.__module__ not in _PLAIN:
            module.register_forward_pre_hook(_forget)


def _forget(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    were_training = [(each, each.training) for each in module.modules()]
    required = [(each, each.requires_grad) for each in module.parameters()]
    module.train()
    module.eval()
    for each, was_training in were_training:
        each.training = was_training
    for parameter, was_required in required:
        if parameter.requires_grad != was_required:
            parameter.requires_grad_(was_required)
