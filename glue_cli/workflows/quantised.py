"""A checkpoint whose weights a library has quantised, run as that library computes with it."""

from glue_cli.blend.quantised import library_of
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.running.device import Compute, find_device
from glue_cli.search.adapters.blends import AdapterBlends
from glue_cli.spec.schema import Spec


def run_if_quantised(spec: Spec, checkpoint: Checkpoint, run: Run) -> AdapterBlends | None:
    """Return a quantised checkpoint's model as the only blend of a single expert; None if transformers cannot load it.

    Raises:
        CheckpointError: the library is not installed, or cannot load it.
        SpecError: the spec's class of transformers does not fit it.
    """
    method = library_of(checkpoint)
    framework, _, name = spec.model.arch.partition(":")
    if method is None or framework != "transformers":
        return None
    from glue_cli.models.libraries.transformers_quantised import check_library, load_quantised

    check_library(method, checkpoint.path)
    run.progress(Noted(f"'{checkpoint.path}' as {method} computes with it"))
    args = {**spec.model_args, "path": str(checkpoint.model_folder)}
    compute = Compute(find_device(run.device))
    model = load_quantised(name, args, spec.path("."), compute.device, need_not_have=())
    return AdapterBlends(model, {}, None, compute, n_experts=1, seed=spec.seed, by_library=True)
