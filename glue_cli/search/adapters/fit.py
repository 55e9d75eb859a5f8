"""Put adapters beside the model of their base, if the model's layers allow it."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from glue_cli.blend.adapters.adapted_base import AdaptedBase
from glue_cli.blend.adapters.mixing import base_tensor
from glue_cli.blend.adapters.stacked import plain_tensors, stack_factors
from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.foundation.memory import give_back_freed
from glue_cli.running.batchnorm import has_batchnorm
from glue_cli.running.device import Compute
from glue_cli.running.weightless import give_memory
from glue_cli.search.adapters.blends import AdapterBlends
from glue_cli.search.adapters.layers import is_supported, is_transposed, pads_with_other_than_zeros
from glue_cli.search.adapters.narrow import NARROW, must_be_wide
from glue_cli.search.bank.load import bank_of_tensors

_WEIGHT = ".weight"


def find_obstacle(model: nn.Module, adapted: AdaptedBase, naming: Naming) -> str | None:
    """Return why adapters cannot be applied by their factors, as the end of a sentence; None if they can.

    Args:
        naming: which tensors of `adapted.merged` become which of the model's.
    """
    if has_batchnorm(model):
        return "the model has BatchNorm"
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, source in _updated(adapted, naming):
        if source.make:
            return f"'{name}' is made from several tensors of the base"
        path, module = _owner(model, name)
        if not is_supported(module):
            return f"'{path}' is a {type(module).__name__}"
        if is_transposed(module) != (source.names[0].removesuffix(_WEIGHT) in adapted.transposed):
            return f"'{path}' stores its weight otherwise than the base does"
        if len(owners[id(module.get_parameter("weight"))]) > 1:
            return f"'{name}' is used by another module too"
    return None


def padded_otherwise(model: nn.Module, adapted: AdaptedBase, naming: Naming) -> list[str]:
    """Return the updated convolutions beside which PEFT pads otherwise than they do, until an adapter is merged."""
    owners = (_owner(model, name) for name, source in _updated(adapted, naming) if not source.make)
    return [path for path, module in owners if pads_with_other_than_zeros(module)]


def _updated(adapted: AdaptedBase, naming: Naming) -> Iterator[tuple[str, Source]]:
    """Yield the names of the model's tensors that are made from tensors that an adapter updates, and their sources."""
    updated = {update.weight for adapter in adapted.adapters for update in adapter.updates.values()}
    return ((name, source) for name, source in naming.distinct() if not updated.isdisjoint(source.names))


def _owner(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Return the module that has a weight, and its path; the model for a tensor that is not called a weight."""
    path = name.removesuffix(_WEIGHT)
    return path, model if path == name else model.get_submodule(path)


def fit_adapters(
    model: nn.Module, adapted: AdaptedBase, naming: Naming, compute: Compute, *, seed: int
) -> AdapterBlends:
    """Return the mixes of adapters, with the base in the dtypes that it is stored in.

    Args:
        model: without an obstacle; its parameters need no values. It gets the base's tensors, and is moved to the
            device. A quantised base has them already, on the device.
    Raises:
        CheckpointError: a tensor has NaN or infinity.
    """
    if not adapted.quantised_by:
        _fill(model, adapted, naming)
    factors = {}
    updated = {update.module for adapter in adapted.adapters for update in adapter.updates.values()}
    for name, source in naming.distinct():
        module = source.names[0].removesuffix(_WEIGHT)
        if module in updated and source.names[0] == module + _WEIGHT:
            factors[name.removesuffix(_WEIGHT)] = stack_factors(adapted, module).to(compute.device)
    n_experts, plain = len(adapted.adapters), None
    if adapted.adapters[0].plain.entries:
        replaced = (plain_tensors(adapted, k, naming) for k in range(n_experts))
        plain = bank_of_tensors(replaced, n_experts=n_experts, device=compute.device)
    placed = model if adapted.quantised_by else compute.to_device(model)
    give_back_freed()  # 25 MB of what reading a base of 491 MB and 8 adapters of 18 MB had taken meanwhile
    by_library = adapted.quantised_by is not None
    return AdapterBlends(placed, factors, plain, compute, n_experts=n_experts, seed=seed, by_library=by_library)


def _fill(model: nn.Module, adapted: AdaptedBase, naming: Naming) -> None:
    """Give a model the base's tensors, each in the dtype that it is stored in if the model can compute with that."""
    wide = must_be_wide(model)
    places = _places(model)
    for name, source in naming.distinct():
        if any(part not in adapted.base.entries for part in source.names):
            give_memory(model, [name])  # only the adapters have it
            continue
        tensor = source.take({part: base_tensor(adapted, part) for part in source.names})
        if name not in places:
            model.get_buffer(name).copy_(tensor)
            continue
        old = places[name][0][0]._parameters[places[name][0][1]]
        assert old is not None
        is_kept = tensor.dtype in NARROW and name not in wide
        new = nn.Parameter(tensor if is_kept else tensor.to(old.dtype), requires_grad=False)
        for module, leaf in places[name]:
            module._parameters[leaf] = new


def _places(model: nn.Module) -> Mapping[str, list[tuple[nn.Module, str]]]:
    """Return where each parameter is, under each of its names; tied ones are in several places."""
    by_tensor: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                by_tensor.setdefault(id(parameter), []).append((module, leaf))
                names[f"{path}.{leaf}" if path else leaf] = parameter
    return {name: by_tensor[id(parameter)] for name, parameter in names.items()}
