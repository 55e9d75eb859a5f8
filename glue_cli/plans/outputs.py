"""Where a command writes, checked before torch is imported and any data is read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.output_files import check_output, check_output_folder, check_room

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec


@dataclass(frozen=True)
class Outputs:
    """Where a command writes, and what it must not overwrite.

    Attributes:
        result: the checkpoint or the report; None if there is none.
        history: a file that gets one JSON line for each step or epoch; None for no history.
        spec_file: the path of the spec, whether or not it exists.
        force: whether existing files may be replaced; inputs never are.
        resumes: whether the command continues an earlier run, whose files may exist.
        are_written: whether anything is; not where the plan alone is wanted.
    """

    result: Path | None
    history: Path | None = None
    spec_file: Path = Path("glue.yaml")
    force: bool = False
    resumes: bool = False
    are_written: bool = True

    def check(
        self,
        checkpoints: Sequence[Checkpoint],
        spec: "Spec | None",
        destination: Destination | None = None,
        *,
        option: str = "--output",
    ) -> None:
        """Check that the outputs do not collide with each other or with anything that the command reads.

        Args:
            destination: the files of the result, if it is more than one file.
            option: the option with which the user can name another result.

        Raises:
            UsageError: an output is an input or another output, is a folder, or exists without `force`.
            ResourceError: it cannot be written.
        """
        if not self.are_written:
            return
        inputs = [self.spec_file, *(file for c in checkpoints for file in (c.path, *c.files))]
        inputs += [c.folder / name for c in checkpoints if c.folder for name in _OF_MODELS]
        if spec:
            inputs += [*_data_files(spec), *spec.code_files]
            inputs += [spec.start_of_experts] if spec.start_of_experts else []
            inputs += [folder, folder / "config.json"] if (folder := model_folder(spec)) else []
        may_exist = self.force or self.resumes  # the command decides later what to do with it
        results = destination.paths if destination else [self.result]
        if destination and destination.is_folder:
            check_output_folder(destination.result, inputs, force=may_exist)
        outputs = [path for path in (*results, self.history) if path]
        if len({os.path.realpath(path) for path in outputs}) < len(outputs):
            raise UsageError(f"'{self.result}' is both the output and the history", hint="name another --history")
        for path in outputs:
            named = "--history" if path == self.history else option
            check_output(path, inputs, force=may_exist, option=named)
        for stale in destination.stale_files() if destination else []:  # these are removed
            check_output(stale, inputs, force=may_exist)

    def check_room(self, n_bytes: int) -> None:
        """Refuse a result of `n_bytes` if the disk has too little free space.

        Raises:
            ResourceError: there is too little.
        """
        if self.result and self.are_written:
            check_room(self.result, n_bytes)


# What a model folder has beside weights, and a run reads or copies.
_OF_MODELS = (
    *("config.json", "generation_config.json", "adapter_config.json", "preprocessor_config.json", "modules.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt"),
)
# Endings of the files of data that an output could overwrite.
_ENDINGS = {"safetensors": ("safetensors",), "jsonl": ("jsonl",), "huggingface": ("json", "jsonl", "csv", "parquet")}


def _data_files(spec: "Spec") -> list[Path]:
    """Return the files of the spec's data sets that an output could overwrite."""
    from glue_cli.data.split_names import OF_VALIDATION  # a plain blend has no data

    return [
        spec.path(data.root) / f"{name}.{ending}"
        for data in spec.data_sets
        for ending in _ENDINGS.get(data.format, ())
        for name in ("train", *OF_VALIDATION, "test", *data.splits.values())
    ]


def model_folder(spec: "Spec") -> Path | None:
    """Return the folder of a transformers model, whose layout its finetuned copies get."""
    return folder if (folder := spec.model_folder) and folder.is_dir() else None
