"""The folder of a checkpoint, where it is another one than the spec's model is built from. Needs no torch."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from glue_cli.checkpoints.header import Checkpoint

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec


def own_folder(spec: "Spec", checkpoint: Checkpoint) -> Path | None:
    """Return a checkpoint's folder if the spec's model of transformers is built from another one; else None."""
    own, folder = checkpoint.model_folder, spec.model_folder
    if own is None or folder is None or not (own / "config.json").is_file():
        return None
    return None if folder.is_dir() and os.path.samefile(own, folder) else own


def build_from(spec: "Spec", folder: Path) -> str:
    """Return what a user can do to build the model from a checkpoint's folder; paths in a spec start at its own."""
    there = spec.path(str(folder))
    written = folder if there.is_dir() and os.path.samefile(there, folder) else folder.absolute()
    return f"build the model from its own folder: --set model.args.path={written}"
