"""Make a bank from checkpoints: choose where to keep it, lay out its rows, and read them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from threading import local

import torch
from torch import Tensor

from glue_cli.blend.finite import check_finite
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.checkpoints.files import open_files
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.naming import Naming
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.batchnorm_names import is_variance
from glue_cli.foundation.errors import CheckpointError, ResourceError, UsageError
from glue_cli.foundation.memory import free_memory
from glue_cli.foundation.progress import Noted, Progress
from glue_cli.foundation.ranks import Place, Ranks
from glue_cli.foundation.units import counted, mebibytes, size
from glue_cli.search.bank.falling_back import in_turn
from glue_cli.search.bank.kinds import KINDS, BankKind
from glue_cli.search.bank.layout import ALIGN, bank_bytes, blended_entries, group_tensors, spans_of, stored_dtype
from glue_cli.search.bank.matrix import ExpertBank, Span
from glue_cli.search.bank.renamed_experts import RenamedExperts, rename_experts
from glue_cli.search.bank.shared_memory import shared_matrix
from glue_cli.search.bank.storage import DiskRows, HostRows, ResidentRows, Rows, Staging
from glue_cli.search.points import bytes_at_once

# The share of the free memory that the bank and the blends may take; the rest is for activations and other programs.
_SHARE_OF_FREE = 0.6
# On a GPU, which has no other programs and no page cache, where only a block of the blends is there beside the bank.
_SHARE_BY_BLOCK = 0.75
# The most that the read buffers of all threads may take together when the bank is on disk.
_DISK_BUFFER_BYTES = 128 << 20
_ALONE = Place()
_LAUNCH = "torchrun --nproc-per-node 2 -m glue_cli mix ..., or --bank streamed"
# How much of all experts is copied to a GPU at once: 1 ms or more of copying for a few kernel launches.
_STAGED_BYTES = 64 << 20


def choose_bank(
    wanted: str,
    experts: Sequence[Checkpoint],
    recipe: Recipe,
    *,
    device: torch.device,
    n_blends: int,
    progress: Progress,
    naming: Naming | None = None,
    memory_bytes: int | None = None,
    needs_gradient: bool = False,
    place: Place = _ALONE,
) -> BankKind:
    """Choose where to keep the experts: as wanted, or in the first of these that has room for them.

    The device's memory, with whole blends or with a block of them; that of all processes together; the host's. Where
    none has room, they are streamed; on disk, beside whole blends in memory, where a gradient is needed. The choice
    and the sizes behind it are reported to `progress`.

    Args:
        wanted: auto, or a kind of bank.
        n_blends: how many float32 blends the search has on the device at once, all processes together; of a small
            model it may also have the blends towards all experts.
        naming: as for `load_bank`.
        memory_bytes: what the experts and blends may take in memory; None for what is free.
        place: this process's in its job.
    Raises:
        UsageError: a bank on disk is wanted, but the model makes some tensors from several of the files; or blocks
            are wanted, but a gradient is needed; or several processes, and there is one, or the other way round.
        ResourceError: a bank is wanted, or the only one that gives a gradient, and takes more than it may.
    """
    made = [name for name, source in naming.distinct() if source.make] if naming else []
    if made and wanted == "disk":
        raise UsageError(
            f"--bank disk: the model makes {counted(len(made), 'tensor')} from several tensors in the files",
            items=made,
            hint="--bank streamed",
        )
    names = [entry.name for entry in blended_entries(experts[0], recipe)]
    in_bank = bank_bytes(experts, recipe)
    n_columns = sum(experts[0].entries[name].n_elements for name in names)
    n_sharing = place.n_sharing(device)
    blends = bytes_at_once(n_blends, n_sharing * (1 + len(recipe.groups) * len(experts)), n_columns)
    if wanted == "sharded" and place.size == 1:
        raise UsageError("--bank sharded is for several processes, and this is one", hint=_LAUNCH)
    if wanted == "blocks" and place.size > 1:
        raise UsageError("--bank blocks is for one process", hint="--bank sharded, which several hold together")
    if wanted in ("blocks", "streamed", "sharded") and needs_gradient:
        raise UsageError(
            f"--method fullgrad needs the gradient of a whole blend, and --bank {wanted} has a block of it at a time",
            hint=f"--method spsa needs no gradient; --bank device takes {size(in_bank + blends)} of memory",
        )
    host = torch.device("cpu")
    on_gpu = device.type == "cuda"
    may_take = math.inf if memory_bytes is None else memory_bytes
    needed: dict[BankKind, int] = {  # streams are planned by their blocks
        "device": in_bank + blends,
        "blocks": in_bank + 8 * max(experts[0].entries[name].n_elements for name in names),
        "sharded": -(-in_bank // place.size) * (1 if on_gpu else place.local_size),  # a block's blends are small
        "host": (1 << (in_bank - 1).bit_length()) + blends,  # torch pins powers of two
        "disk": n_sharing * min(_DISK_BUFFER_BYTES, in_bank) + blends,
    }
    kinds = [
        kind
        for kind in in_turn("device", needs_gradient=needs_gradient, n_processes=place.size)
        if kind in needed and (kind != "host" or on_gpu) and (kind != "disk" or not made)
    ]
    on_device, by_block = usable_memory(device), usable_memory(device, by_block=True)
    free: dict[BankKind, float] = {
        "device": on_device,
        "blocks": by_block,
        "sharded": by_block,
        "host": usable_memory(host) + blends if blends <= on_device else 0,  # blends are on the device
        "disk": math.inf,  # what else there is takes more
    }
    fitting = [kind for kind in kinds if needed[kind] <= min(free[kind], may_take)]
    otherwise: BankKind = kinds[-1] if needs_gradient else "streamed"
    kind = next((known for known in KINDS if known == wanted), fitting[0] if fitting else otherwise)
    if not on_gpu and kind == "host":
        kind = "device"  # without a GPU, host memory is the device's memory
    if kind in needed and needed[kind] > may_take:
        least = min(kinds, key=needed.__getitem__)
        hint = f"--memory {mebibytes(needed[least])} and --bank {least}, or --method spsa, which needs no gradient"
        typed = kind if wanted == "auto" else wanted
        raise ResourceError(
            f"--bank {typed} takes {size(needed[kind])}, more than the {size(may_take)} of --memory",
            hint=hint if needs_gradient else "--bank streamed",
        )
    where = {
        "disk": "on disk",
        "streamed": "streamed from disk block by block",
        "host": "in memory",
        "blocks": f"{'on ' + str(device) if on_gpu else 'in memory'}, blended block by block",
        "sharded": f"a share in the memory of each of {place.size} processes",
    }.get(kind, f"on {device}" if on_gpu else "in memory")
    room = size(free_memory(host if kind == "host" else device))
    progress(Noted(f"bank: {counted(len(experts), 'expert')}, {size(in_bank)}, {where}; {room} are free"))
    return kind


def usable_memory(device: torch.device, *, by_block: bool = False) -> int:
    """Return how many bytes of a device's memory a search may take for the experts and blends.

    Args:
        by_block: whether blends are made block by block.
    """
    share = _SHARE_BY_BLOCK if by_block and device.type == "cuda" else _SHARE_OF_FREE
    return int(share * free_memory(device))


def check_variances(experts: Sequence[Checkpoint], recipe: Recipe) -> None:
    """Check that no variance of BatchNorm is negative: its square root would be NaN.

    Raises:
        CheckpointError: one is.
    """
    names = [entry.name for entry in blended_entries(experts[0], recipe) if is_variance(entry.name)]
    for expert in experts:
        for name, variance in read_tensors(expert, names).items():
            if (variance < 0).any():
                smallest = variance.min().item()
                raise CheckpointError(
                    f"{expert.path}: '{name}' is a variance of BatchNorm, and has {smallest:g}",
                    hint="leave this expert out, or mend it",
                )


def load_bank(
    experts: Sequence[Checkpoint],
    *,
    device: torch.device,
    channels_last: bool = False,
    recipe: Recipe = PLAIN,
    kind: BankKind = "device",
    naming: Naming | None = None,
    ranks: Ranks | None = None,
) -> ExpertBank:
    """Make a bank of the floating-point tensors that are blended; the experts have to be compatible.

    Args:
        channels_last: store convolution weights in channels_last order; a bank on disk keeps the files' order.
        recipe: with the names in the experts' files.
        kind: where the rows are kept: on the device, in host memory, or in the experts' own files.
        naming: which of the experts' tensors become which of the model's; the bank uses the model's names and shapes.
            None if they are the same.
        ranks: the processes that all make this bank; those of one machine share one in host memory, and each reads
            some of the experts.
    Raises:
        CheckpointError: an expert has NaN, infinity, or a negative BatchNorm variance, whose square root would be NaN.
        SpecError: the recipe treats the parts of one model tensor differently.
    Cost: every expert is read once, with `disk` too, so that a NaN is found before the search begins.
    """
    check_variances(experts, recipe)
    renamed = rename_experts(experts, recipe, naming)
    headers = renamed.headers
    spans: dict[str, Span] = {}
    sections: list[tuple[int, Rows]] = []
    n_before = 0
    on_disk, buffers, ranks = kind == "disk", local(), ranks or Ranks()
    staging = Staging(device, _STAGED_BYTES) if kind == "host" and device.type == "cuda" else None
    for (group, _), names in group_tensors(headers, renamed.recipe).items():
        own = spans_of(names, headers[0], channels_last=channels_last and not on_disk, aligned=not on_disk)
        rows = (
            _disk_rows(renamed, own, device, buffers)
            if on_disk
            else _memory_rows(renamed, own, device, staging, ranks)
        )
        sections.append((group, rows))
        spans |= {name: Span(n_before + span.start, span.shape, span.channels_last) for name, span in own.items()}
        n_before += rows.n_columns
    return ExpertBank(sections, spans, n_experts=len(experts), device=device, n_groups=len(recipe.groups))


def bank_of_tensors(
    experts: Iterable[Iterable[tuple[str, Tensor]]], *, n_experts: int, device: torch.device
) -> ExpertBank:
    """Make a bank, float32 on the device, of experts that are given as tensors instead of files.

    Args:
        experts: each expert's tensors with their names, in the same order for all.
    """
    spans: dict[str, Span] = {}
    matrix = torch.empty(n_experts, 0, device=device)
    for k, expert in enumerate(experts):
        tensors = {name: tensor for name, tensor in expert if tensor.is_floating_point() and tensor.numel()}
        if k == 0:
            width = 0
            for name, tensor in tensors.items():
                spans[name] = Span(width, tuple(tensor.shape), channels_last=False)
                width += tensor.numel() + (-tensor.numel() % ALIGN)
            matrix = torch.zeros(n_experts, width, device=device)
        for name, tensor in tensors.items():
            spans[name].view(matrix[k]).copy_(tensor)
    return ExpertBank([(0, ResidentRows(matrix))], spans, n_experts=n_experts, device=device)


def _memory_rows(
    experts: RenamedExperts,
    spans: dict[str, Span],
    device: torch.device,
    staging: Staging | None,
    ranks: Ranks,
) -> Rows:
    headers = experts.headers
    last = list(spans)[-1]
    n_columns = spans[last].start + headers[0].entries[last].n_elements
    n_columns += -n_columns % ALIGN
    dtype, where = stored_dtype(headers, last), "cpu" if staging else device
    shape, own, matrix = (len(headers), n_columns), range(len(headers)), None
    if ranks.size > 1 and device.type == "cpu":
        matrix = shared_matrix(shape, dtype, ranks)
        if matrix is not None:
            own = range(ranks.place.local_rank, len(headers), ranks.place.local_size)
    if matrix is None:
        matrix = torch.zeros(shape, dtype=dtype, device=where, pin_memory=staging is not None)
    for k in own:
        _read_row(experts, k, spans, matrix[k])
    ranks.gather([])  # until the others have read theirs
    return HostRows(matrix, staging) if staging else ResidentRows(matrix)


def _read_row(experts: RenamedExperts, k: int, spans: Mapping[str, Span], row: Tensor) -> None:
    with open_files(experts.originals[k]) as descriptors:
        for name, span in spans.items():
            span.view(row).copy_(experts.read(k, name, descriptors, row.dtype))


def _disk_rows(experts: RenamedExperts, spans: Mapping[str, Span], device: torch.device, buffers: local) -> Rows:
    headers = experts.headers
    block_columns = max(1, _DISK_BUFFER_BYTES // (torch.get_num_threads() * 4 * (len(headers) + 1)))
    starts = {name: span.start for name, span in spans.items()}
    rows = DiskRows(headers, starts, device, block_columns, buffers)
    checked = DiskRows(headers, starts, device, block_columns, local())  # buffers of its own, which are freed at once
    for start in range(0, rows.n_columns, block_columns):
        block = checked.read(start, min(start + block_columns, rows.n_columns))
        for k, row in enumerate(block):
            if not torch.isfinite(row.sum()):
                _raise_for_columns(experts, k, spans, row, start)
    return rows


def _raise_for_columns(experts: RenamedExperts, k: int, spans: Mapping[str, Span], row: Tensor, start: int) -> None:
    """Raise an error that names the tensor with NaN or infinity in an expert's columns from `start` on, if any."""
    expert = experts.headers[k]
    for name, span in spans.items():
        end = span.start + expert.entries[name].n_elements
        if span.start < start + len(row) and start < end:
            check_finite(expert, experts.name_on_disk(name), row[max(0, span.start - start) : end - start])
