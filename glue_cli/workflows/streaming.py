"""A checkpoint that does not fit into memory as a model, run block by block."""

from glue_cli.blend.recipe import Recipe
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.foundation.units import size
from glue_cli.models import build_model
from glue_cli.models.weights import check_fits_model, constant_buffers
from glue_cli.running.device import Compute, find_device, likes_channels_last
from glue_cli.running.weightless import fill
from glue_cli.search.bank.layout import blended_entries
from glue_cli.search.bank.load import check_variances, usable_memory
from glue_cli.search.bank.renamed_experts import rename_experts
from glue_cli.search.streamed.blends import StreamedBlends
from glue_cli.search.streamed.engine import Engine
from glue_cli.spec.schema import Spec


def streamed_if_large(spec: Spec, checkpoint: Checkpoint, run: Run) -> StreamedBlends | None:
    """Return a checkpoint's model as the only blend of a single expert; None if it fits into memory as a whole.

    Raises:
        CheckpointError: the checkpoint does not fit the spec's model.
        ResourceError: a block of it does not fit into memory either.
    """
    device = find_device(run.device)
    # The model in float32, and for a moment beside it the tensors as they were read.
    floats = [entry for entry in checkpoint.entries.values() if entry.dtype in FLOAT_DTYPES]
    in_memory = sum(4 * entry.n_elements + entry.n_bytes for entry in floats)
    usable = usable_memory(device)
    if in_memory <= usable:
        return None
    run.progress(Noted(f"'{checkpoint.path}' takes {size(in_memory)} in memory: streamed from disk block by block"))
    model = build_model(spec.model.arch, spec.model_args, seed=0, folder=spec.path("."), weightless=True)
    naming = check_fits_model(model, checkpoint, spec)
    buffers = constant_buffers(model)  # masks among them may hold infinities
    constant = {part for name, source in naming.sources.items() if name in buffers for part in source.names}
    recipe = Recipe(copied_from=dict.fromkeys(constant, 0))
    check_variances([checkpoint], recipe)
    experts = rename_experts([checkpoint], recipe, naming)
    streamed = {entry.name for entry in blended_entries(experts.headers[0], experts.recipe)}
    kept = [part for name, source in naming.distinct() if name not in streamed for part in source.names]
    fill(model, naming.in_memory(read_tensors(checkpoint, dict.fromkeys(kept))))
    compute = Compute(device, channels_last=likes_channels_last(model))
    model = compute.to_device(model).eval().requires_grad_(False)
    engine = Engine(model, experts, (), device, n_groups=1, channels_last=compute.channels_last, memory_bytes=usable)
    return StreamedBlends(model, engine, compute, seed=spec.seed)
