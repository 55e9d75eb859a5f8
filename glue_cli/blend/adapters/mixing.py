"""Mix the updates of low-rank adapters, sum_k alpha_k s_k B_k A_k: as one adapter, or merged into the base.

A and B are never averaged separately: the product of two means is not the mean of the products.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glue_cli.blend.adapters.adapted_base import AdaptedBase
from glue_cli.blend.adapters.adapter import CONFIG, WEIGHTS, Adapter, Update, adapter_misfits
from glue_cli.blend.misfit import refuse
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, is_counter
from glue_cli.checkpoints.naming import Naming
from glue_cli.checkpoints.safetensors_file import header_of, lay_out, metadata_of
from glue_cli.checkpoints.tensors import TORCH_DTYPES, bytes_of, read_tensors, write_checkpoint
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.output_files import reserve, write_all, writing

# Settings of single modules and of the start of training, which do not apply to the mix; they get PEFT's defaults.
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

_PART = 1 << 20  # elements that are widened at once to see whether they are finite


def update_of(adapter: Adapter, update: Update, *, transposed: bool) -> Tensor:
    """Return s B A in the shape of the weight that it is added to, in float32, or float64 if the factors are.

    Args:
        transposed: whether the weight is [n_in, n_out], or an embedding's [vocabulary, width].
    Raises:
        CheckpointError: a factor has NaN or infinity.
    """
    a, b = read_factors(adapter, update)
    product = (b.flatten(1) @ a.flatten(1)).mul_(update.scale)  # [n_out, inputs]
    return product.T if transposed else product.view(update.outer_shape)


def mixed_tensor(adapted: AdaptedBase, alpha: Sequence[float], name: str) -> Tensor:
    """Return W + sum_k alpha_k s_k B_k A_k for one tensor of the adapted model.

    W is the base's tensor or, if the adapters replace it, the blend of their tensors. Adapters with a coefficient of 0
    are not read.

    Args:
        alpha: [K], on the simplex.
    Returns:
        float32 or float64; integers keep their dtype.
    Raises:
        CheckpointError: NaN or infinity, or integers that differ between adapters.
    """
    used = _with_weight(adapted.adapters, alpha)
    module = name.removesuffix(".weight")
    is_plain = name in adapted.adapters[0].plain.entries
    total = _blend_plain(used, name) if is_plain else _wide(_read(adapted.base, name))
    for adapter, weight in used:
        update = adapter.updates.get(module)
        if update and update.weight == name:
            product = update_of(adapter, update, transposed=module in adapted.transposed)
            total = total.to(torch.promote_types(total.dtype, product.dtype)).add_(product, alpha=weight)
    return total


def expert_tensors(adapted: AdaptedBase, expert: int, naming: Naming) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one adapter's model that may differ between adapters: W + s B A, heads and biases.

    Args:
        naming: which tensors of `adapted.merged` become which of the model's.
    Returns:
        pairs of the model's names and tensors, in the order of the names on disk; float32, float64 or integers.
    """
    one_hot = [float(k == expert) for k in range(len(adapted.adapters))]
    changed = {*adapted.changed}
    for name, source in sorted(naming.distinct(), key=lambda pair: pair[1].names):
        if not changed.isdisjoint(source.names):
            yield name, source.take({part: mixed_tensor(adapted, one_hot, part) for part in source.names})


def write_merged(
    output: Path, adapted: AdaptedBase, alpha: Sequence[float], glue: Mapping[str, Any], *, replace: bool = True
) -> None:
    """Write the base plus sum_k alpha_k s_k B_k A_k as one safetensors file, in the base's dtypes.

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
    """Write the mix of adapters as one adapter whose factors are the experts' factors side by side.

    Its B A is then the sum of theirs. alpha_k and s_k are multiplied into B, in float32 or wider, and the new
    adapter's scale is 1. All modules get the same rank: those that not every adapter updates are padded with zeros.

    Raises:
        CheckpointError: the adapters do not fit each other, have NaN or infinity, or have integers that differ.
        ResourceError: the output cannot be written.
    """
    refuse(adapter_misfits(adapters))
    used = _with_weight(adapters, alpha)
    first = used[0][0]
    modules = sorted({module for adapter, _ in used for module in adapter.updates})
    rank = max(sum(a.updates[module].rank for a, _ in used if module in a.updates) for module in modules)
    tensors = {
        entry.name: _blend_plain(used, name).to(TORCH_DTYPES[entry.dtype])
        for name, entry in first.plain.entries.items()
    }
    for module in modules:
        tensors |= _stack(used, module, rank)
    overflowing = [f"'{name}'" for name, tensor in tensors.items() if not _is_finite(tensor)]
    if overflowing:
        raise CheckpointError("these tensors of the mix are not finite", items=overflowing)
    config = {**first.config, **_UNIFORM, "r": rank, "lora_alpha": rank, "target_modules": modules}
    with writing(folder / CONFIG, replace=replace) as descriptor:
        write_all(descriptor, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), 0)
        write_checkpoint(folder / WEIGHTS, tensors, glue, replace=replace)


def _with_weight(adapters: Sequence[Adapter], alpha: Sequence[float]) -> list[tuple[Adapter, float]]:
    """Return the adapters with a coefficient other than 0, and their coefficients."""
    return [(adapter, weight) for adapter, weight in zip(adapters, alpha, strict=True) if weight != 0]


def _stack(used: Sequence[tuple[Adapter, float]], module: str, rank: int) -> dict[str, Tensor]:
    """Return the two factors, [rank, ...] and [n_out, rank, ...], of the sum of a module's updates."""
    names, downs, ups = [], [], []
    for adapter, weight in used:
        if update := adapter.updates.get(module):
            a, b = read_factors(adapter, update)
            names += [update.a.name, update.b.name]
            downs.append(a)
            ups.append(b * (weight * update.scale))
    missing = rank - sum(a.shape[0] for a in downs)
    downs.append(downs[0].new_zeros(missing, *downs[0].shape[1:]))
    ups.append(ups[0].new_zeros(ups[0].shape[0], missing, *ups[0].shape[2:]))
    return {names[0]: torch.cat(downs), names[1]: torch.cat(ups, 1)}


def _blend_plain(used: Sequence[tuple[Adapter, float]], name: str) -> Tensor:
    tensors = [_read(adapter.plain, name) for adapter, _ in used]
    entry = used[0][0].plain.entries[name]
    if entry.dtype in FLOAT_DTYPES:
        total = _wide(tensors[0]).mul_(used[0][1])
        for tensor, (_, weight) in zip(tensors[1:], used[1:], strict=True):
            total.add_(_wide(tensor), alpha=weight)
        return total
    if is_counter(entry):
        return torch.stack(tensors).amax(0)
    if not all(torch.equal(tensor, tensors[0]) for tensor in tensors):
        raise CheckpointError(f"'{name}' is not floating point and differs between the adapters")
    return tensors[0]


def read_factors(adapter: Adapter, update: Update) -> tuple[Tensor, Tensor]:
    """Return a and b of an update in the same dtype, float32 or float64.

    Raises:
        CheckpointError: a factor has NaN or infinity.
    """
    a, b = (_wide(_read(adapter.checkpoint, factor.name)) for factor in (update.a, update.b))
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def plain_tensor(adapter: Adapter, name: str) -> Tensor:
    """Return a tensor that an adapter has in place of the base's, in float32 or float64; integers as they are.

    Raises:
        CheckpointError: it has NaN or infinity.
    """
    return _wide(_read(adapter.plain, name))


def base_tensor(adapted: AdaptedBase, name: str) -> Tensor:
    """Return a tensor of the base, in the dtype that it is stored in.

    Raises:
        CheckpointError: it has NaN or infinity.
    """
    return _read(adapted.base, name)


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    tensor = read_tensors(checkpoint, [name])[name]
    if not _is_finite(tensor):
        wide = _wide(tensor)
        message = f"{checkpoint.path}: '{name}' has {wide[~torch.isfinite(wide)][0].item()}"
        raise CheckpointError(message, hint="leave this expert out, or mend it")
    return tensor


def _wide(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor as float32, or as float64 if it is; any other tensor unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    flat = tensor.flatten()
    parts = (flat[start : start + _PART] for start in range(0, len(flat), _PART))
    return all(bool(torch.isfinite(_wide(part)).all()) for part in parts)
