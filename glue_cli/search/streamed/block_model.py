"""A copy of a model whose blended tensors exist only while their block runs."""

from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from glue_cli.running.copies import copy_model
from glue_cli.search.bound_models import tied_names, without_cudnn
from glue_cli.search.streamed.absent import AbsentTensor, AbsentTensorError
from glue_cli.search.streamed.blocks import Block, Split


class BlockModel:
    """A model that asks for each block before it runs, and gets its tensors as views of a row.

    Args:
        model: the architecture; its blended tensors are on the meta device, all others are shared.
        made: the names of tensors that the copy has of its own.
        split: the model's blocks.
    Attributes:
        before_block: is called before a block runs.
    """

    def __init__(self, model: nn.Module, made: Collection[str], split: Split, device: torch.device) -> None:
        tied = tied_names(model)
        own = {alias for name in made for alias in (name, *tied.get(name, ()))}
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.module = copy_model(model, [tensor for name, tensor in tensors if name not in own])
        self._fixed: Mapping[str, Tensor] = {}
        self._in_blocks = {place for block in (*split.blocks, split.kept) for place in block.places}
        self.before_block: Callable[[Block], None] | None = None
        self._failed: list[AbsentTensorError] = []
        absent = {id(tensor): AbsentTensor.like(tensor, device, self._failed) for _, tensor in tensors}
        self._absent = {name: absent[id(tensor)] for name, tensor in tensors}  # tied ones are one
        for block in (*split.blocks, split.kept):
            self.unbind(block)
        for module in self.module.modules():
            if isinstance(module, nn.RNNBase):
                module.forward = without_cudnn(module.forward)
        for block in split.blocks:  # outermost: cuDNN's switch is not the thread's, and no thread may wait inside
            self._announce(self.module.get_submodule(block.module), block)

    def fix(self, tensors: Mapping[str, Tensor]) -> None:
        """Let these tensors, by name, take the place of blended ones and of others, from now on."""
        self._fixed = tensors
        for place in tensors.keys() - self._in_blocks:
            self._set(place, tensors[place])

    def bind(self, block: Block, tensors: Mapping[str, Tensor]) -> None:
        """Give the block its tensors, by name; tied ones are one parameter."""
        shared = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
        for place, name in block.places.items():
            self._set(place, self._fixed[place] if place in self._fixed else shared[name])

    def unbind(self, block: Block) -> None:
        """Take the block's tensors away."""
        for place in block.places:
            self._set(place, self._absent[place])

    def run(self, forward: Callable[[], Tensor]) -> Tensor:
        """Make a forward pass of the model.

        Raises:
            AbsentTensorError: it uses a tensor outside the block that it belongs to, even if the model catches that.
        """
        self._failed.clear()
        outputs = forward()
        if self._failed:
            raise self._failed[0]
        return outputs

    def _set(self, place: str, tensor: Tensor) -> None:
        path, _, leaf = place.rpartition(".")
        module = self.module.get_submodule(path)
        if leaf in module._parameters:
            is_ready = isinstance(tensor, AbsentTensor | nn.Parameter)
            module._parameters[leaf] = tensor if is_ready else nn.Parameter(tensor, requires_grad=False)  # type: ignore[assignment]
        else:
            module._buffers[leaf] = tensor.data if isinstance(tensor, nn.Parameter) else tensor

    def _announce(self, module: nn.Module, block: Block) -> None:
        """Let a module call `before_block` first; not by a hook, which keeps torch from its faster kernels."""
        forward = module.forward

        @wraps(forward)
        def announced(*arguments: Any, **named: Any) -> Any:
            if self.before_block is not None:
                try:
                    self.before_block(block)
                except AbsentTensorError as error:
                    self._failed.append(error)
                    raise
            return forward(*arguments, **named)

        module.forward = announced
