"""Write a trained model: as one file, or as a Hugging Face folder that `from_pretrained` loads."""

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.output_files import copy_into, write_all, writing
from glue_cli.foundation.regular_files import read_text
from glue_cli.models.matching import tensors_on_disk


def save_model(
    destination: Destination,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    glue: Mapping[str, Any],
    class_names: Sequence[str] | None,
    *,
    start: Checkpoint | None = None,
) -> None:
    """Write a model's tensors with glue's metadata, and into a folder its configuration and tokenizer too.

    All files appear together at the end, the configuration last, or none does.

    Args:
        model: of transformers, where the destination is a folder.
        class_names: what the outputs mean, for the configuration.
        start: the checkpoint that the model was loaded from, whose names the tensors get; None where it has none.
    Raises:
        ResourceError: the output cannot be written.
    """
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


def configured(
    source: Path, class_names: Sequence[str], dtype: str | None, n_tokens: tuple[int, int] | None = None
) -> bytes:
    """Return the text of a Hugging Face configuration for other classes, if any are given, another dtype or tokens.

    transformers would load the weights in the dtype of the configuration, whatever their own.

    Args:
        n_tokens: the rows that the embeddings had, and have now.
    Raises:
        CheckpointError: it is no configuration.
    """
    try:
        config = dict(json.loads(read_text(source)))
    except (ValueError, TypeError, RecursionError):
        raise CheckpointError(f"'{source}' is no JSON object", hint="copy or download it again") from None
    except OSError as error:
        raise CheckpointError(f"'{source}' cannot be read: {error.strerror}") from None
    if class_names:
        config.pop("num_labels", None)  # which transformers counts itself
        config["id2label"] = {str(number): name for number, name in enumerate(class_names)}
        config["label2id"] = {name: number for number, name in enumerate(class_names)}
    if dtype:
        _set_dtype(config, dtype)
    if n_tokens:
        _set_vocabulary_size(config, *n_tokens)
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Name a dtype wherever a configuration names one: its own, and those of the models that it is made of."""
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and isinstance(value, str):  # as transformers 5 and 4 call it
            config[key] = dtype
        elif key.endswith("_config") and isinstance(value, dict):
            _set_dtype(value, dtype)


def _set_vocabulary_size(config: dict[str, Any], before: int, now: int) -> None:
    """Name the number of tokens wherever a configuration does, which may be that of a model within."""
    for key, value in config.items():
        if key == "vocab_size" and value == before:
            config[key] = now
        elif isinstance(value, dict):
            _set_vocabulary_size(value, before, now)


def _configuration(model: Any, class_names: Sequence[str] | None) -> str:
    config = copy.deepcopy(model.config)
    if hasattr(config, "use_cache"):
        config.use_cache = True  # which was off while the model was trained
    config.architectures = [type(model).__name__]
    if class_names and len(class_names) == config.num_labels:
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: number for number, name in enumerate(class_names)}
    text: str = config.to_json_string()
    return text
