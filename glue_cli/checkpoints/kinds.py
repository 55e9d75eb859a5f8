"""The kind of a weights file, told by its first bytes, since a suffix can be wrong or missing. Needs no torch."""

from pathlib import Path
from typing import Literal

from glue_cli.checkpoints.foreign import refuse_foreign
from glue_cli.checkpoints.header import TORCH_SUFFIXES
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.pointers import pointer_to
from glue_cli.foundation.regular_files import regular

Kind = Literal["safetensors", "torch"]

_HEAD_BYTES = 512
_SAFETENSORS = b"{"  # after 8 bytes with the header's length
_ARCHIVE, _PICKLE = b"PK\x03\x04", tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_OF_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # with which torch before 1.6 begins its pickles
_CONVERT = "load it with {}, and save its weights as safetensors"
# First bytes of other kinds of files, with what they are and what to do.
_OTHERS = {
    b"GGUF": ("a GGUF file, as llama.cpp reads", "name the model that it was converted from"),
    b"\x89HDF\r\n\x1a\n": (
        "an HDF5 file, as Keras and TensorFlow write",
        _CONVERT.format("the library that wrote it"),
    ),
    b"\x1f\x8b": ("compressed with gzip", "unpack it: gunzip, or tar xzf"),
    b"BZh": ("compressed with bzip2", "unpack it: bunzip2, or tar xjf"),
    b"\xfd7zXZ\x00": ("compressed with xz", "unpack it: unxz, or tar xJf"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it: unzstd"),
    b"\x93NUMPY": ("an array of NumPy", _CONVERT.format("NumPy")),
}
_TAR_MAGIC = slice(257, 262), b"ustar"


def kind_of(path: Path) -> Kind:
    """Return the kind of a weights file, by its first bytes or, if these do not decide, by its suffix.

    Raises:
        CheckpointError: glue does not support this kind, or the file cannot be read.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from None
    if not head:
        raise CheckpointError(f"'{path}' is empty", hint="write, copy or download it again")
    if head[8:9] == _SAFETENSORS and head[5:8] == bytes(3):  # a plausible length
        return "safetensors"
    refuse_foreign(path)
    if head.startswith(_PICKLE) and _OF_TORCH not in head:
        hint = (
            "load it with the library that wrote it, and save its weights alone as tensors: torch.save(weights, PATH)"
        )
        raise CheckpointError(f"'{path}' is a pickle, without the archive of torch.save", hint=hint)
    if head.startswith((_ARCHIVE, *_PICKLE)):
        return "torch"
    if pointer := pointer_to(head):
        what, command = pointer
        raise CheckpointError(f"'{path}' is {what}, and not the file", hint=f"fetch the file itself: {command}")
    for beginning, (what, hint) in _OTHERS.items():
        if head.startswith(beginning):
            raise CheckpointError(f"'{path}' is {what}", hint=hint)
    where, magic = _TAR_MAGIC
    if head[where] == magic:
        raise CheckpointError(f"'{path}' is a tar archive", hint="unpack it: tar xf, and name the weights in it")
    if head.lstrip()[:1] == b"<":
        hint = "download it again: the address may be that of a page, or ask for a login"
        raise CheckpointError(f"'{path}' is a web page", hint=hint)
    return "torch" if path.name.endswith(TORCH_SUFFIXES) else "safetensors"
