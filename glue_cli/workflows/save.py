"""Write a trained model: as one file, or as a Hugging Face folder that `from_pretrained` loads."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glue_cli.checkpoints.configuration import NO_CHANGES, Changes, configured, dtype_of
from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.output_files import copy_into, write_all, writing
from glue_cli.foundation.progress import Noted, Progress


def save_model(
    destination: Destination,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    glue: Mapping[str, Any],
    class_names: Sequence[str] | None,
    *,
    start: Checkpoint | None = None,
) -> None:
    """Write a model's tensors with glue's metadata; in a folder, its configuration and tokenizer too.

    Either all files appear together at the end, the configuration last, or none does.

    Args:
        model: one of transformers if the destination is a folder.
        class_names: the meaning of the outputs, for the configuration.
        start: the checkpoint that the model was loaded from, whose tensor names are used; None if there is none.
    Raises:
        ResourceError: the output cannot be written.
    """
    from glue_cli.models.matching import tensors_on_disk  # a plain blend does not need it

    with ExitStack() as stack:
        stack.enter_context(destination.claimed())
        if destination.is_folder:
            config = stack.enter_context(writing(destination.result / "config.json", replace=destination.force))
            write_all(config, _configuration(model, class_names).encode(), 0)
        for source, copy in destination.companions:
            copy_into(stack.enter_context(writing(copy, replace=destination.force)), source)
        write_checkpoint(destination.files[0], tensors_on_disk(model, tensors, start), glue, replace=destination.force)
    for stale in destination.stale_files():
        stale.unlink()


def warn_of_left_out(model: nn.Module, progress: Progress) -> None:
    """Warn of what a model's state dict has and its file will lack."""
    from glue_cli.models.tensors import left_out  # a plain blend does not need it

    if names := left_out(model):
        text = f"'{names[0]}' of the model's state dict is no tensor, and is left out of the file: keep it in a buffer"
        progress(Noted(text, warning=True))


def configured_beside(copy: Path, source: Path, destination: Destination, changes: Changes) -> bytes | None:
    """Return the text of the `config.json` to write at `copy`; None if it is the same as that of `source`.

    Args:
        changes: to the model's own settings; the settings of its parts are kept, except their dtype.
    Raises:
        CheckpointError: something changes, and `source` is no configuration.
    """
    if source.name != "config.json":
        return None
    is_top = copy.parent == destination.result
    return configured(source, changes if is_top else NO_CHANGES, dtype_of(destination.tensors_in(copy.parent)))


def _configuration(model: Any, class_names: Sequence[str] | None) -> str:
    config = copy.deepcopy(model.config)
    if hasattr(config, "use_cache"):
        config.use_cache = True  # it was off while the model was trained
    config.architectures = [type(model).__name__]
    if class_names and len(class_names) == config.num_labels:
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: number for number, name in enumerate(class_names)}
    text: str = config.to_json_string()
    return text
