"""Compute in float32 with weights that are stored in bfloat16 or float16, a part of one weight at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from glue_cli.foundation.memory import give_back_freed
from glue_cli.search.adapters.layers import is_linear, n_outputs, rows_of

NARROW = (torch.bfloat16, torch.float16)
_PART_BYTES = 8 << 20  # of a weight in float32; larger parts were no faster for a model of 0.25 billion on two cores
# Before an output of this size, such as logits, what the layers before have freed goes back to the system.
_LARGE_BYTES = 64 << 20
# Modules that use the weights of others, or in code that takes float32 alone.
_OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

Rows = Callable[[int, int], Tensor]  # rows of a weight from start to stop, float32


def must_be_wide(model: nn.Module) -> set[str]:
    """Return the names of parameters that have to be stored in float32."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, _OPAQUE)
        for name, _ in module.named_parameters()
    }


def compute_wide(model: nn.Module) -> None:
    """Let a model compute as if its narrow parameters were float32; under autocast, products use them as they are.

    What is of a kind of its own, such as a library's quantised weights, is left to those who made it; a linear layer
    of weights that stand for narrow ones gets narrow inputs.
    """
    for module in model.modules():
        parameters = {name: tensor for name, tensor in module._parameters.items() if type(tensor) is nn.Parameter}
        narrow = [name for name, tensor in parameters.items() if tensor.dtype in NARROW]
        own = module._parameters.get("weight")
        if own is not None and "weight" not in parameters and own.dtype in NARROW:
            if isinstance(module, nn.Linear):
                module.forward = partial(_narrowed, module.forward, own.dtype)  # type: ignore[method-assign]
            elif isinstance(module, nn.Embedding):
                module.register_forward_hook(_widened)
            continue
        if not narrow:
            continue
        if is_linear(module):
            module.forward = partial(_linear, module)
        elif type(module) is nn.Embedding:
            module.register_forward_hook(_widened)
        else:
            swap = _Swap(narrow)
            module.register_forward_pre_hook(swap.widen)
            module.register_forward_hook(swap.restore, always_call=True)


def linear_by_rows(inputs: Tensor, module: nn.Module, rows: Rows) -> Tensor:
    """Return the output of a linear layer whose weight is made part by part. Cost: one part in memory."""
    bias = module._parameters["bias"]
    out: Tensor = _LinearByRows.apply(  # type: ignore[no-untyped-call]
        inputs.float(), rows, n_outputs(module), _part(inputs)
    )
    return out if bias is None else out + bias


def _linear(module: nn.Module, inputs: Tensor) -> Tensor:
    if torch.is_autocast_enabled(inputs.device.type):
        bias = module._parameters["bias"]
        return functional.linear(inputs, rows_of(module, 0, n_outputs(module)), bias)
    return linear_by_rows(inputs, module, lambda start, stop: rows_of(module, start, stop).float())


def _narrowed(forward: Callable[[Tensor], Tensor], dtype: torch.dtype, inputs: Tensor) -> Tensor:
    return forward(inputs.to(dtype)).float()


def _part(inputs: Tensor) -> int:
    return max(1, _PART_BYTES // (4 * inputs.shape[-1]))


def _widened(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return output.float()


class _LinearByRows(torch.autograd.Function):
    """x W^T for a frozen W whose rows are made again for the backward pass, so that none are kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, rows: Rows, n_out: int, part: int) -> Tensor:
        ctx.rows, ctx.n_out, ctx.part = rows, n_out, part
        flat = inputs.reshape(-1, inputs.shape[-1])
        if len(flat) * n_out * inputs.itemsize >= _LARGE_BYTES:
            give_back_freed()
        out = inputs.new_empty(len(flat), n_out)
        for start in range(0, n_out, part):
            stop = min(start + part, n_out)
            torch.mm(flat, rows(start, stop).T, out=out[:, start:stop])  # in place: a tenth faster, and without a copy
        return out.view(*inputs.shape[:-1], n_out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total: Tensor | None = None
        for start in range(0, ctx.n_out, ctx.part):
            stop = min(start + ctx.part, ctx.n_out)
            product = gradients[0][..., start:stop] @ ctx.rows(start, stop)
            total = product if total is None else total.add_(product)
        return total, None, None, None


class _Swap:
    """Gives a module float32 copies of its narrow parameters for as long as its forward runs."""

    def __init__(self, names: list[str]) -> None:
        self._names, self._stored = names, list[dict[str, nn.Parameter | None]]()

    def widen(self, module: nn.Module, arguments: Any) -> None:
        self._stored.append({name: module._parameters[name] for name in self._names})
        for name, stored in self._stored[-1].items():
            assert stored is not None
            module._parameters[name] = nn.Parameter(stored.float(), requires_grad=False)

    def restore(self, module: nn.Module, arguments: Any, output: Any) -> None:
        module._parameters.update(self._stored.pop())
