"""Mix low-rank adapters by their updates, sum_k alpha_k s_k B_k A_k: as one adapter, or merged into the base.

A mean of products is not the product of means, so A and B are never averaged apart.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glue_cli.blend.adapters.adapted_base import AdaptedBase
from glue_cli.blend.adapters.adapter import CONFIG, WEIGHTS, Adapter, Update, check_adapters
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, is_counter
from glue_cli.checkpoints.naming import Naming
from glue_cli.checkpoints.safetensors_file import header_of, lay_out, metadata_of
from glue_cli.checkpoints.tensors import TORCH_DTYPES, bytes_of, read_tensors, write_checkpoint
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.output_files import reserve, write_all, writing

# What the experts' configurations say of single modules, and of the start of their training, does not hold of the mix.
_UNIFORM: dict[str, Any] = {
    "alpha_pattern": {},
    "eva_config": None,
    "exclude_modules": None,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "rank_pattern": {},
    "use_rslora": False,
}


def update_of(adapter: Adapter, update: Update, *, transposed: bool) -> Tensor:
    """Return s B A in the shape of the weight that it is added to, float32, float64 where the factors are.

    Args:
        transposed: whether the weight is [n_in, n_out], or an embedding's [vocabulary, width].
    Raises:
        CheckpointError: a factor has NaN or infinity.
    """
    a, b = _read_factors(adapter, update)
    product = (b.flatten(1) @ a.flatten(1)).mul_(update.scale)  # [n_out, inputs]
    return product.T if transposed else product.view(update.outer_shape)


def mixed_tensor(adapted: AdaptedBase, alpha: Sequence[float], name: str) -> Tensor:
    """Return W + sum_k alpha_k s_k B_k A_k for one tensor of the adapted model.

    W is the base's, or the blend of what the adapters have in its place. What has a coefficient of 0 is not read.

    Args:
        alpha: [K], on the simplex.
    Returns:
        float32 or float64; integers as they are.
    Raises:
        CheckpointError: NaN or infinity, or integers that differ between adapters.
    """
    taking = _taking(adapted.adapters, alpha)
    module = name.removesuffix(".weight")
    is_plain = name in adapted.adapters[0].plain.entries
    total = _blend_plain(taking, name) if is_plain else _wide(_read(adapted.base, name))
    for adapter, weight in taking:
        update = adapter.updates.get(module)
        if update and update.weight == name:
            product = update_of(adapter, update, transposed=module in adapted.transposed)
            total = total.to(torch.promote_types(total.dtype, product.dtype)).add_(product, alpha=weight)
    return total


def expert_tensors(adapted: AdaptedBase, expert: int, naming: Naming) -> Iterator[tuple[str, Tensor]]:
    """Yield one adapter's model, as far as it may differ from the others': W + s B A, heads and biases.

    Args:
        naming: of the tensors of `adapted.merged` in the model.
    Returns:
        the model's names with their tensors, the same names in the same order for every expert; float32 or float64,
        and integers.
    """
    one_hot = [float(k == expert) for k in range(len(adapted.adapters))]
    changed = {*adapted.changed}
    for name, source in naming.distinct():
        if not changed.isdisjoint(source.names):
            yield name, source.take({part: mixed_tensor(adapted, one_hot, part) for part in source.names})


def write_merged(
    output: Path, adapted: AdaptedBase, alpha: Sequence[float], glue: Mapping[str, Any], *, replace: bool = True
) -> None:
    """Write the base with sum_k alpha_k s_k B_k A_k added as one safetensors file, in the base's dtypes.

    Raises:
        CheckpointError: NaN or infinity, or a value too large for the dtype.
        ResourceError: the output cannot be written.
    Cost: memory for one tensor and its update at a time.
    """
    entries = lay_out(adapted.merged)
    header = header_of(entries, metadata_of(glue))
    with writing(output, replace=replace) as descriptor:
        reserve(descriptor, len(header) + sum(entry.n_bytes for entry in entries))
        write_all(descriptor, header, 0)
        for entry in entries:
            tensor = mixed_tensor(adapted, alpha, entry.name).to(TORCH_DTYPES[entry.dtype]).contiguous()
            if not _is_finite(tensor):
                message = f"'{entry.name}' is too large for {entry.dtype}"
                raise CheckpointError(message, hint="convert the base to a wider dtype")
            write_all(descriptor, bytes_of(tensor), len(header) + entry.offset)


def concatenate(
    adapters: Sequence[Adapter], alpha: Sequence[float], folder: Path, glue: Mapping[str, Any], *, replace: bool = True
) -> None:
    """Write the mix of adapters as one adapter: their ranks one after another, so that its B A is the sum.

    alpha_k and s_k go into B, in float32 at least, and the adapter's own scale is 1. Modules with fewer ranks than
    others, as when not all adapters update them, get zeros, so that one rank holds for all.

    Raises:
        CheckpointError: the adapters do not fit each other, have NaN or infinity, or integers that differ.
        ResourceError: the output cannot be written.
    """
    check_adapters(adapters)
    taking = _taking(adapters, alpha)
    first = taking[0][0]
    modules = sorted({module for adapter, _ in taking for module in adapter.updates})
    rank = max(sum(a.updates[module].rank for a, _ in taking if module in a.updates) for module in modules)
    tensors = {
        entry.name: _blend_plain(taking, name).to(TORCH_DTYPES[entry.dtype])
        for name, entry in first.plain.entries.items()
    }
    for module in modules:
        tensors |= _stack(taking, module, rank)
    overflowing = [f"'{name}'" for name, tensor in tensors.items() if not _is_finite(tensor)]
    if overflowing:
        raise CheckpointError("these tensors of the mix are not finite", items=overflowing)
    config = {**first.config, **_UNIFORM, "r": rank, "lora_alpha": rank, "target_modules": modules}
    with writing(folder / CONFIG, replace=replace) as descriptor:
        write_all(descriptor, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), 0)
        write_checkpoint(folder / WEIGHTS, tensors, glue, replace=replace)


def _taking(adapters: Sequence[Adapter], alpha: Sequence[float]) -> list[tuple[Adapter, float]]:
    return [(adapter, weight) for adapter, weight in zip(adapters, alpha, strict=True) if weight != 0]


def _stack(taking: Sequence[tuple[Adapter, float]], module: str, rank: int) -> dict[str, Tensor]:
    """Return the factors [rank, ...], [n_out, rank, ...] of the sum of a module's updates."""
    names, downs, ups = [], [], []
    for adapter, weight in taking:
        if update := adapter.updates.get(module):
            a, b = _read_factors(adapter, update)
            names += [update.a.name, update.b.name]
            downs.append(a)
            ups.append(b * (weight * update.scale))
    missing = rank - sum(a.shape[0] for a in downs)
    downs.append(downs[0].new_zeros(missing, *downs[0].shape[1:]))
    ups.append(ups[0].new_zeros(ups[0].shape[0], missing, *ups[0].shape[2:]))
    return {names[0]: torch.cat(downs), names[1]: torch.cat(ups, 1)}


def _blend_plain(taking: Sequence[tuple[Adapter, float]], name: str) -> Tensor:
    found = [_read(adapter.plain, name) for adapter, _ in taking]
    entry = taking[0][0].plain.entries[name]
    if entry.dtype in FLOAT_DTYPES:
        total = _wide(found[0]).mul_(taking[0][1])
        for tensor, (_, weight) in zip(found[1:], taking[1:], strict=True):
            total.add_(_wide(tensor), alpha=weight)
        return total
    if is_counter(entry):
        return torch.stack(found).amax(0)
    if not all(torch.equal(tensor, found[0]) for tensor in found):
        raise CheckpointError(f"'{name}' is not floating point and differs between the adapters")
    return found[0]


def _read_factors(adapter: Adapter, update: Update) -> tuple[Tensor, Tensor]:
    a, b = (_wide(_read(adapter.checkpoint, factor.name)) for factor in (update.a, update.b))
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    tensor = read_tensors(checkpoint, [name])[name]
    if not _is_finite(tensor):
        message = f"{checkpoint.path}: '{name}' has NaN or infinity"
        raise CheckpointError(message, hint="leave this expert out, or mend it")
    return tensor


def _wide(tensor: Tensor) -> Tensor:
    """Return floating-point numbers as float32, or as the float64 that they are; anything else as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(_wide(tensor)).all())
