"""The `config.json` of a folder that glue writes, adapted to the weights in it. Needs no library."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.header import Described
from glue_cli.foundation.errors import UNREADABLE, CheckpointError
from glue_cli.foundation.regular_files import read_text

_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Changes:
    """What differs from the folder that a configuration comes from.

    Attributes:
        class_names: the new names of the outputs; empty if unchanged.
        n_tokens: the number of rows of the embeddings before and now; None if unchanged.
        architecture: the class that loads the weights; None if unchanged.
        unties: whether embeddings and output layer are now two tensors instead of one.
    """

    class_names: tuple[str, ...] = ()
    n_tokens: tuple[int, int] | None = None
    architecture: str | None = None
    unties: bool = False


NO_CHANGES = Changes()


def dtype_of(tensors: Iterable[Described]) -> str | None:
    """Return the name of the dtype that all floating-point tensors share; None if they differ or there are none."""
    dtypes = {dtype for _, dtype, _ in tensors if dtype in _NAMES}
    return _NAMES[dtypes.pop()] if len(dtypes) == 1 else None


def configured(source: Path, changes: Changes, dtype: str | None) -> bytes | None:
    """Return the text of a Hugging Face configuration adapted to other weights; None if it fits them already.

    The dtype matters: transformers loads the weights in the dtype of the configuration, even if theirs is another.

    Args:
        dtype: the weights' dtype, by torch's name; None if they have several.
    Raises:
        CheckpointError: `source` has to be changed but is not a configuration.
    """
    try:
        text = read_text(source)
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise CheckpointError(f"'{source}' cannot be read: {error.strerror}", hint=UNREADABLE) from None
    config = _parsed(text)
    if config is None:
        if changes == NO_CHANGES:
            return None
        raise CheckpointError(f"'{source}' is no JSON object", hint="copy or download it again")
    if names := changes.class_names:
        config.pop("num_labels", None)  # transformers derives it from the names
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
        config = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Set the dtype wherever a configuration has one: its own, and those of nested models."""
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and isinstance(value, str):  # the key in transformers 5, and in 4
            config[key] = dtype
        elif key.endswith("_config") and isinstance(value, dict):
            _set_dtype(value, dtype)


def _set_vocabulary_size(config: dict[str, Any], before: int, now: int) -> None:
    """Set the number of tokens wherever a configuration has it, also for nested models."""
    for key, value in config.items():
        if key == "vocab_size" and value == before:
            config[key] = now
        elif isinstance(value, dict):
            _set_vocabulary_size(value, before, now)
