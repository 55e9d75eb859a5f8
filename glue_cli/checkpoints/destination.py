"""Where a blend is written: one file, shards with an index, or a Hugging Face folder. Needs no torch."""

import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from glue_cli.checkpoints.companions import CARD, files_to_copy
from glue_cli.checkpoints.header import TORCH_SUFFIXES, Described, TensorEntry
from glue_cli.checkpoints.parts import Part
from glue_cli.checkpoints.safetensors_file import lay_out
from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.output_files import writing_alone

_INDEX = ".index.json"
_WEIGHTS = ".safetensors"
# Weights that libraries look for in a model's folder; glue does not delete others, such as a backup.
_LOADED = re.compile(r"(diffusion_pytorch_|open_clip_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class Destination:
    """The files of a blend.

    Attributes:
        result: the path to give to the next command: a file, an index, or a folder.
        shards: the tensors (name, dtype, shape) of each weights file.
        files: the weights files, one for each shard.
        index: the index of the shards; None if there is none.
        companions: files to copy, each with the path of its copy.
        parts: the modules in subfolders, whose weights are the last of `files`.
        card: the model card; None if none is written.
        force: whether to replace a file that was created after this was planned.
    """

    result: Path
    shards: tuple[tuple[Described, ...], ...]
    files: tuple[Path, ...]
    index: Path | None = None
    companions: tuple[tuple[Path, Path], ...] = ()
    parts: tuple[Part, ...] = ()
    card: Path | None = None
    force: bool = True

    @property
    def prefixes(self) -> tuple[str, ...]:
        """For each file, the prefix that its tensors' names have in the blend, but not in the file."""
        return ("",) * (len(self.files) - len(self.parts)) + tuple(part.prefix for part in self.parts)

    @property
    def is_folder(self) -> bool:
        return self.result not in (*self.files, self.index)

    @property
    def n_bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(entry.n_bytes for number, shard in enumerate(self.shards) for entry in lay_out(shard, number))

    def claimed(self) -> AbstractContextManager[None]:
        """Return a context that keeps other runs from writing to the same folder; a single file does not need it."""
        return writing_alone(self.result, replace=self.force) if self.is_folder else nullcontext()

    def with_companions(self, pairs: Iterable[tuple[Path, Path]]) -> "Destination":
        """Return this destination with more files to copy."""
        return replace(self, companions=(*self.companions, *pairs))

    def tensors_in(self, folder: Path) -> list[Described]:
        """Return the tensors of the weights files in a folder."""
        placed = zip(self.files, self.shards, strict=True)
        return [described for file, shard in placed if file.parent == folder for described in shard]

    def stale_files(self) -> list[Path]:
        """Return files of an earlier blend in the folder that would be read instead of or along with this one."""
        if not self.is_folder:
            return []
        loaded = (path for path in sorted(self.result.glob("*model*")) if _LOADED.fullmatch(path.name))
        return [path for path in loaded if path not in self.paths]

    @property
    def paths(self) -> list[Path]:
        """All files that are written."""
        written = [*self.files, self.index, *(copy for _, copy in self.companions), self.card]
        return [path for path in written if path]


def plan_destination(
    output: Path,
    tensors: Iterable[Described],
    *,
    model_folder: Path | None = None,
    companions: Sequence[Path] | None = None,
    parts: tuple[Part, ...] = (),
    max_shard_bytes: int | None = None,
    card: bool = False,
    stem: str = "model",
) -> Destination:
    """Decide by the output's name which files a blend is written to.

    `NAME.safetensors` is one file, or `NAME-0000I-of-0000N.safetensors` with `NAME.safetensors.index.json` if
    the blend is larger than a shard may be. The name of an index means shards. With a model folder, any other name
    means a folder like it.

    Args:
        tensors: the blend's tensors.
        model_folder: the Hugging Face folder to copy files from; None if there is none.
        companions: the files to copy from it; None for all.
        parts: modules whose tensors have their own files.
        card: whether to write a model card into a folder.
        stem: the name of the weights in a folder, without suffixes.
        max_shard_bytes: the most bytes of tensors in a file; None for no limit. A larger tensor gets its own file.
    Raises:
        UsageError: the output is named like another kind of file.
        CheckpointError: a link in the model's folder leads out of it.
    """
    _check_name(output)
    own, of_parts = _apart(tensors, parts)
    groups = _cut(lay_out(own), max_shard_bytes)
    shards = tuple(tuple((entry.name, entry.dtype, entry.shape) for entry in group) for group in groups)
    if model_folder and is_folder_name(output):
        files, index = _name_files(output / f"{stem}{_WEIGHTS}", len(shards))
        along = files_to_copy(model_folder, apart=[output]) if companions is None else companions
        return Destination(
            output,
            (*shards, *of_parts),
            (*files, *(output / part.file for part in parts)),
            index,
            _copies(along, model_folder, output),
            parts,
            output / CARD if card else None,
        )
    is_index = output.name.endswith(_WEIGHTS + _INDEX)
    single = output.with_name(output.name.removesuffix(_INDEX)) if is_index else output
    files, index = _name_files(single, len(shards), indexed=is_index)
    return Destination(index or output, shards, files, index)


def plan_model_destination(output: Path, model_folder: Path | None) -> Destination:
    """Decide by the output's name where a trained model is written: to one file, or to a Hugging Face folder.

    Args:
        model_folder: the folder with configuration and tokenizer of a transformers model; None for other models.
    Raises:
        UsageError: the output is named like another kind of file.
    """
    _check_name(output)
    if model_folder is None or output.suffix == _WEIGHTS:
        return Destination(output, (), (output,))
    copies = _copies(files_to_copy(model_folder, apart=[output]), model_folder, output)
    companions = tuple(pair for pair in copies if pair[1] != output / "config.json")
    return Destination(output, (), (output / f"model{_WEIGHTS}", output / "config.json"), companions=companions)


def _check_name(output: Path) -> None:
    """Check that the output is not named like another kind of file, since programs go by the name."""
    if output.suffix in TORCH_SUFFIXES or output.suffix == ".json" and not output.name.endswith(_WEIGHTS + _INDEX):
        raise UsageError(
            f"the output '{output}' has the name of another kind of file",
            hint=f"blends and models are safetensors: -o {output.with_suffix(_WEIGHTS)}",
        )


def is_folder_name(output: Path) -> bool:
    """Tell whether a blend with this name is a folder, provided that its experts are folders."""
    return not output.name.endswith((_WEIGHTS, _INDEX))


def _copies(files: Sequence[Path], folder: Path, output: Path) -> tuple[tuple[Path, Path], ...]:
    """Return the files of a model's folder, each with its copy."""
    return tuple((path, output / path.relative_to(folder)) for path in files)


def _apart(
    tensors: Iterable[Described], parts: Sequence[Part]
) -> tuple[list[Described], tuple[tuple[Described, ...], ...]]:
    """Return the tensors that belong to no part, and those of each part."""
    own: list[Described] = []
    of_parts: list[list[Described]] = [[] for _ in parts]
    for described in tensors:
        home = next(
            (of_part for part, of_part in zip(parts, of_parts, strict=True) if described[0].startswith(part.prefix)),
            own,
        )
        home.append(described)
    return own, tuple(map(tuple, of_parts))


def _cut(entries: Sequence[TensorEntry], max_bytes: int | None) -> list[list[TensorEntry]]:
    groups: list[list[TensorEntry]] = [[]]
    n_bytes = 0
    for entry in entries:
        if max_bytes is not None and groups[-1] and n_bytes + entry.n_bytes > max_bytes:
            groups.append([])
            n_bytes = 0
        groups[-1].append(entry)
        n_bytes += entry.n_bytes
    return groups


def _name_files(single: Path, n_files: int, *, indexed: bool = False) -> tuple[tuple[Path, ...], Path | None]:
    if n_files == 1 and not indexed:
        return (single,), None
    stem = single.name.removesuffix(_WEIGHTS)
    names = (f"{stem}-{number:05d}-of-{n_files:05d}{_WEIGHTS}" for number in range(1, n_files + 1))
    return tuple(single.with_name(name) for name in names), single.with_name(single.name + _INDEX)
