"""Training of models larger than one device: of every tensor each process holds a part, by torch's FSDP2.

The parts of a block are put together while it runs, and its gradients are added up and dealt out again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glue_cli.foundation.ranks import Ranks, meeting

# A weight, its gradient and Adam's two moments, in float32.
BYTES_A_PARAMETER = 16


def shard(model: nn.Module, blocks: Sequence[str], device: torch.device, ranks: Ranks) -> None:
    """Leave of every parameter only this process's part in memory, on the device.

    Args:
        model: in host memory, the same in every process; changed in place.
        blocks: the names of the submodules that are put together one at a time; the rest is together while any runs.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with meeting():
        mesh = init_device_mesh(device.type, (ranks.size,))
    for name in blocks:
        fully_shard(model.get_submodule(name), mesh=mesh)
    # Resharded at once: an optimizer made after an evaluation would get the parameters that were put together for it.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Tell whether `shard` has changed a model: every process then has to make the same forward passes."""
    return any(_is_part(parameter) for parameter in model.parameters())


def whole(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors of which processes hold parts put together, on the CPU, and everything else as it is.

    All processes have to ask for it.
    """
    with meeting():
        return {name: value.full_tensor().cpu() if _is_part(value) else value for name, value in tensors.items()}


def parts_like(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this process's parts of whole tensors, of those that `others` have parts of under the same name."""
    return {name: part_like(tensor, others[name]) for name, tensor in tensors.items()}


def part_like(tensor: Tensor, other: Any) -> Tensor:
    """Return this process's part of a whole tensor, laid out as `other`; the tensor itself if `other` is no part."""
    if not _is_part(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(other.device)
    return distribute_tensor(moved, other.device_mesh, other.placements, src_data_rank=None)


def _is_part(value: object) -> bool:
    return hasattr(value, "full_tensor")  # torch's DTensor, whose import takes a while
