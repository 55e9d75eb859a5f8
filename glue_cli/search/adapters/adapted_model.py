"""A model that shows any mix of its adapters, one alpha at a time."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from glue_cli.blend.adapters.stacked import StackedFactors
from glue_cli.foundation.errors import CheckpointError
from glue_cli.running.copies import copy_model
from glue_cli.running.forward import Inputs, outputs_of
from glue_cli.search.adapters.layers import CONVOLUTIONS, merged_weight, rows_of, update_output
from glue_cli.search.adapters.narrow import compute_wide, linear_by_rows
from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.bound_models import bind, place_views


class AdaptedModel:
    """A base, with the factors of its adapters beside its tensors.

    Args:
        base: on the device, in the dtypes in which it is kept.
        factors: by the names of the modules; on the device.
        plain: the tensors that the adapters replace, which are blended as wholes; None if there are none.
        rounded: the dtypes, other than float32, of weights into which the update is merged, by the weights' names;
            such weights are made as they will be written, part by part.
        by_library: whether a library computes with the base's weights, which it has quantised. The base is then
            changed, and not copied: a copy would have weights of its own that the library keeps beside the parameters.
    """

    def __init__(
        self,
        base: nn.Module,
        factors: Mapping[str, StackedFactors],
        plain: ExpertBank | None,
        rounded: Mapping[str, torch.dtype],
        *,
        by_library: bool = False,
    ) -> None:
        self.plain, self._by_library = plain, by_library
        if plain:
            self.row = torch.empty(1, plain.n_columns, device=plain.device)
        if by_library:
            self.module = base
            if plain:
                place_views(base, plain.spans, self.row[0])
        elif plain:
            self.module = bind(base, plain.spans, self.row[0], ())
        else:
            shared = [*base.parameters(), *base.buffers()]
            self.module = copy_model(base, shared)
        self._alpha = torch.empty(0)
        self._awaited: set[str] | None = set(factors)  # modules that have not been called yet; None once all were
        compute_wide(self.module)
        for path, stacked in factors.items():
            self._adapt(path, stacked, rounded.get(f"{path}.weight", torch.float32))

    def show(self, alpha: Tensor) -> None:
        """Let it be the mix for alpha [1, K] from now on; a gradient passes to alpha through the factors."""
        self._alpha = alpha[0]
        if self.plain:
            with torch.no_grad():
                self.plain.blend(alpha[None].detach(), self.row)

    def outputs(self, inputs: Inputs) -> Tensor:
        """Return its outputs.

        Raises:
            CheckpointError: the model never calls a module that the adapters update.
        """
        outputs = outputs_of(self.module, inputs)
        if self._awaited:
            raise CheckpointError(
                "the model uses weights that the adapters update without calling their modules, or does not use them",
                items=sorted(self._awaited),
                hint="--bank dense, which keeps the updates as whole tensors",
            )
        self._awaited = None
        return outputs

    def _adapt(self, path: str, factors: StackedFactors, dtype: torch.dtype) -> None:
        module = self.module.get_submodule(path)
        computes_products = not isinstance(module, (nn.Embedding, *CONVOLUTIONS))  # also a layer of a library's own
        if computes_products:
            module.forward = partial(self._linear, path, module, module.forward, factors, dtype)
        elif dtype == torch.float32:
            module.register_forward_hook(partial(self._add, path, factors), with_kwargs=True)
        elif isinstance(module, nn.Embedding):
            hook = partial(self._add, path, factors)
            module.register_forward_hook(lambda *call: hook(*call).to(dtype).float(), with_kwargs=True)
        else:
            module.forward = partial(self._merged_convolution, path, module, factors, dtype)

    def _add(
        self, path: str, factors: StackedFactors, module: nn.Module, arguments: Any, named: Any, output: Tensor
    ) -> Tensor:
        self._was_called(path)
        inputs = arguments[0] if arguments else next(iter(named.values()))
        return output + update_output(module, factors, self._coefficients(factors, output), inputs)

    def _linear(
        self,
        path: str,
        module: nn.Module,
        unadapted: Callable[[Tensor], Tensor],
        factors: StackedFactors,
        dtype: torch.dtype,
        inputs: Tensor,
    ) -> Tensor:
        self._was_called(path)
        coefficients = self._coefficients(factors, inputs)
        if self._by_library or (dtype == torch.float32 and not _is_merging_cheaper(factors, inputs)):
            return unadapted(inputs) + update_output(module, factors, coefficients, inputs)

        def rows(start: int, stop: int) -> Tensor:
            update = (factors.b[start:stop] * coefficients) @ factors.a
            return update.add_(rows_of(module, start, stop)).to(dtype).float()

        return linear_by_rows(inputs, module, rows)

    def _merged_convolution(
        self, path: str, module: Any, factors: StackedFactors, dtype: torch.dtype, inputs: Tensor
    ) -> Tensor:
        self._was_called(path)
        weight = merged_weight(module, factors, self._coefficients(factors, inputs), dtype)
        bias = None if module.bias is None else module.bias.float()
        outputs: Tensor = module._conv_forward(inputs, weight, bias)
        return outputs

    def _coefficients(self, factors: StackedFactors, beside: Tensor) -> Tensor:
        return factors.coefficients(self._alpha.to(beside.device, torch.float32))

    def _was_called(self, path: str) -> None:
        if self._awaited:
            self._awaited.discard(path)


def _is_merging_cheaper(factors: StackedFactors, inputs: Tensor) -> bool:
    """Tell whether many inputs make it cheaper to add the update to each part of a weight than to their outputs.

    A gradient by alpha would keep those parts, and under autocast they would lose digits.
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled(inputs.device.type):
        return False
    n_in, n_out = factors.a.shape[1], factors.b.shape[0]
    return inputs.numel() // n_in * (n_in + n_out) > n_in * n_out
