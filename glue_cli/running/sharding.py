"""Training of models larger than one device: of every tensor each process holds a part, by torch's FSDP2.

The parts of a block are put together while it runs, and its gradients are added up and dealt out again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    return any(is_part(parameter) for parameter in model.parameters())


def whole(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors of which processes hold parts put together, on the CPU, and everything else as it is.

    All processes have to ask for it.
    """
    with meeting():
        return {name: value.full_tensor().cpu() if is_part(value) else value for name, value in tensors.items()}


def parts_like(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this process's parts of whole tensors, of those that `others` have parts of under the same name."""
    return {name: part_like(tensor, others[name]) for name, tensor in tensors.items()}


def part_like(tensor: Tensor, other: Any) -> Tensor:
    """Return this process's part of a whole tensor, laid out as `other`; the tensor itself if `other` is no part."""
    if not is_part(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(other.device)
    return distribute_tensor(moved, other.device_mesh, other.placements, src_data_rank=None)


def is_part(value: object) -> bool:
    """Tell whether a process holds only a part of a tensor."""
    return hasattr(value, "full_tensor")  # torch's DTensor, whose import takes a while


def own_part(tensor: Any) -> Tensor:
    """Return the part of a tensor that this process holds: all of it, unless it is dealt out."""
    return tensor.to_local() if is_part(tensor) else tensor  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Layout:
    """How a tensor is dealt out: its rows, as many to each process, and fewer to the last ones.

    Attributes:
        shape: of the whole tensor.
    """

    shape: torch.Size
    dtype: torch.dtype
    n_parts: int

    def shape_of_part(self, rank: int) -> torch.Size:
        n_rows = -(-self.shape[0] // self.n_parts)
        own = min(max(self.shape[0] - rank * n_rows, 0), n_rows)
        return torch.Size((own, *self.shape[1:]))


def layout_of(part: Any) -> Layout:
    """Return how a tensor is dealt out, of which this process holds a part."""
    layout = Layout(part.shape, part.dtype, part.device_mesh.size())
    own = layout.shape_of_part(part.device_mesh.get_rank())
    assert part.to_local().shape == own, f"{tuple(part.to_local().shape)}, not {tuple(own)}"
    return layout
