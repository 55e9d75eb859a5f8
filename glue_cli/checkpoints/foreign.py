"""Files and folders without a model that glue reads, told by their names: what they are, and what to do. No torch."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

from glue_cli.foundation.errors import CheckpointError

_DISTRIBUTED = (
    "a distributed checkpoint of torch",
    "make one file of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
)
_SHARED_OUT = (
    "a checkpoint of DeepSpeed, shared out among processes",
    "make one file of it: run zero_to_fp32.py, which lies in the checkpoint's folder",
)
_TENSORFLOW = (
    "a checkpoint of TensorFlow",
    "load it with the library that wrote it, and save its weights as safetensors",
)
_FLAX = ("a model of Flax", "load it by from_pretrained(FOLDER, from_flax=True), and call save_pretrained")
_KERAS = ("a model of Keras", "load it with Keras, and save its weights as safetensors")
_ONNX = ("an ONNX graph", "name the model that it was exported from")
_FILES = {
    "*.distcp": _DISTRIBUTED,
    ".metadata": _DISTRIBUTED,
    "*_optim_states.pt": ("the state of DeepSpeed's optimiser, and no model", _SHARED_OUT[1]),
    "random_states_*.pkl": ("the state of random generators, and no model", "name the model's file"),
    "*.keras": _KERAS,
    "*.onnx": _ONNX,
    "*.msgpack": _FLAX,
    "*.data-*-of-*": _TENSORFLOW,
    "*.index": _TENSORFLOW,
    "*.pb": _TENSORFLOW,
}
# What a folder may hold in place of a model's weights.
_IN_FOLDERS = {
    ".metadata": _DISTRIBUTED,
    "*/.metadata": _DISTRIBUTED,
    "zero_to_fp32.py": _SHARED_OUT,
    "global_step*/mp_rank_00_model_states.pt": (
        "a checkpoint of DeepSpeed",
        "name the file of its model, which is this",
    ),
    "*_optim_states.pt": _SHARED_OUT,
    "tf_model.h5": (_TENSORFLOW[0], "load it by from_pretrained(FOLDER, from_tf=True), and call save_pretrained"),
    "flax_model.msgpack": _FLAX,
    "*.keras": _KERAS,
    "saved_model.pb": _TENSORFLOW,
    "*.index": _TENSORFLOW,
    "*.onnx": _ONNX,
}
_OF_A_TRAINING = re.compile(r"checkpoint-(\d+)")


def refuse_foreign(path: Path) -> None:
    """Refuse a file whose name says that it holds no weights, or those of another library.

    Raises:
        CheckpointError: it does.
    """
    for pattern, (what, hint) in _FILES.items():
        if fnmatchcase(path.name, pattern):
            raise CheckpointError(f"'{path}' is {what}", hint=hint)


def refuse_foreign_folder(folder: Path) -> None:
    """Refuse a folder without weights that glue reads, if names say what it holds in their place.

    Raises:
        CheckpointError: they do.
    """
    for pattern, (what, hint) in _IN_FOLDERS.items():
        if found := sorted(folder.glob(pattern)):
            message = f"the folder '{folder}' holds {what}, and no weights that glue reads"
            raise CheckpointError(message, items=[str(path) for path in found], hint=hint)
    states = [path for path in folder.iterdir() if _OF_A_TRAINING.fullmatch(path.name) and path.is_dir()]
    if states:
        states.sort(key=lambda path: int(path.name.rpartition("-")[2]))
        raise CheckpointError(
            f"the folder '{folder}' holds no model itself, but checkpoints of its training",
            items=[str(path) for path in states],
            hint=f"name one of them, such as the last: '{states[-1]}'",
        )
