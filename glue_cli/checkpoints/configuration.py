"""The `config.json` of a folder that is written, which has to say what its weights are. Needs no library."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.header import Described
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.regular_files import read_text

_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Changes:
    """What is otherwise than in the folder that a configuration comes from.

    Attributes:
        class_names: those of the outputs; none where they stay.
        n_tokens: the rows that the embeddings had, and have now; None where they stay.
        architecture: the class that loads the weights; None where it stays.
        unties: whether embeddings and output layer, which were one tensor, are two.
    """

    class_names: tuple[str, ...] = ()
    n_tokens: tuple[int, int] | None = None
    architecture: str | None = None
    unties: bool = False


NO_CHANGES = Changes()


def dtype_of(tensors: Iterable[Described]) -> str | None:
    """Return the name of the floating-point dtype that all tensors have which have one; None where they differ."""
    found = {dtype for _, dtype, _ in tensors if dtype in _NAMES}
    return _NAMES[found.pop()] if len(found) == 1 else None


def configured(source: Path, changes: Changes, dtype: str | None) -> bytes | None:
    """Return the text of a Hugging Face configuration for other weights; None where it says what they are already.

    transformers would load the weights in the dtype of the configuration, whatever their own.

    Args:
        dtype: that of the weights, as torch calls it; None where they have several.
    Raises:
        CheckpointError: something changes, and it is no configuration.
    """
    try:
        text = read_text(source)
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise CheckpointError(f"'{source}' cannot be read: {error.strerror}") from None
    config = _parsed(text)
    if config is None:
        if changes == NO_CHANGES:
            return None
        raise CheckpointError(f"'{source}' is no JSON object", hint="copy or download it again")
    if names := changes.class_names:
        config.pop("num_labels", None)  # which transformers counts itself
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
    if dtype:
        _set_dtype(config, dtype)
    if changes.n_tokens:
        _set_vocabulary_size(config, *changes.n_tokens)
    if changes.architecture:
        config["architectures"] = [changes.architecture]
    if changes.unties:
        config["tie_word_embeddings"] = False
    if config == _parsed(text):
        return None
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


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
