"""Tensors that are not in memory: whatever computes with one fails, instead of giving a wrong result.

Tensors on the meta device do not do: some of torch's CPU kernels take them beside others, and return garbage.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# What a tensor that is not there may be asked for: properties and methods of a tensor.
_PROPERTIES = ("shape", "dtype", "layout", "ndim", "requires_grad", "is_leaf", "is_sparse", "is_nested")
_METHODS = ("size", "dim", "numel", "nelement", "is_floating_point", "is_complex", "__len__")
_KNOWN = {getattr(Tensor, name).__get__ for name in _PROPERTIES} | {getattr(Tensor, name) for name in _METHODS}


class AbsentTensorError(RuntimeError):
    """Something computes with a tensor that is not in memory."""


class AbsentTensor(Tensor):
    """A tensor of which only the shape, the dtype and the device are known."""

    _where: torch.device
    _is_param: bool
    _failed: list[AbsentTensorError]

    @classmethod
    def like(cls, tensor: Tensor, device: torch.device, failed: list[AbsentTensorError]) -> "AbsentTensor":
        """Return a tensor of the same shape that is to be on `device`, and float32 as all that is blended.

        Args:
            failed: gets every error that is raised; the model may catch it and go on without the tensor.
        """
        with torch._C.DisableTorchFunctionSubclass():
            absent: AbsentTensor = Tensor._make_subclass(
                cls, torch.empty_like(tensor, device="meta", dtype=torch.float32)
            )
            absent._where, absent._failed = device, failed
            absent._is_param = isinstance(tensor, nn.Parameter)  # for `isinstance`, as torch has it
        return absent

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.device.__get__:
                return args[0]._where
            if func in _KNOWN:
                return func(*args, **(kwargs or {}))
        is_property = getattr(func, "__name__", "") == "__get__"
        name = getattr(getattr(func, "__self__", func) if is_property else func, "__name__", str(func))
        error = AbsentTensorError(f"'{name}' needs a tensor outside the block that it belongs to")
        for each in (*args, *(kwargs or {}).values()):
            for tensor in each if isinstance(each, list | tuple) else [each]:
                if isinstance(tensor, AbsentTensor):
                    tensor._failed.append(error)
        raise error
