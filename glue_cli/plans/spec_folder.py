"""Compare checkpoints in model folders with the folder that the spec's model is built from. Needs no torch."""

import filecmp
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glue_cli.blend.configurations import differences_of_use
from glue_cli.blend.misfit import Misfit, refuse
from glue_cli.blend.vocabulary import in_one_kind, preparation_notes, read_vocabulary
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.json_files import read_object
from glue_cli.foundation.units import listed
from glue_cli.models.own_folder import build_from, own_folder

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec


def check_folders(spec: "Spec", checkpoints: Sequence[Checkpoint]) -> None:
    """Check that the spec's model computes what the checkpoints' own folders say, and reads texts by their numbers.

    A model of transformers is built, and texts are read, by the files in `model.args.path`. The same weights with
    another activation, another number of heads or another vocabulary are another model, and nothing else would tell.

    Raises:
        CheckpointError: a checkpoint's configuration or vocabulary is another one.
    """
    refuse(misfit for checkpoint in checkpoints for misfit in _misfits(spec, checkpoint))


def reading_notes(spec: "Spec", checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return sentences on checkpoints whose tokenizers prepare texts otherwise than the one that reads them here."""
    folders = [own for checkpoint in checkpoints if (own := own_folder(spec, checkpoint))]
    if spec.model_folder is None:
        return []
    return [note for folder in dict.fromkeys(folders) for note in preparation_notes([spec.model_folder, folder])]


def _misfits(spec: "Spec", checkpoint: Checkpoint) -> Iterator[Misfit]:
    own, folder = own_folder(spec, checkpoint), spec.model_folder
    if own is None or folder is None:
        return
    arguments = {key: value for key, value in spec.model.args.items() if key != "path"}
    wanted = {**read_object(folder / "config.json"), **arguments}
    differences = differences_of_use(read_object(own / "config.json"), wanted, [checkpoint])
    grave = [difference for difference in differences if difference.is_grave]
    hint = build_from(spec, own)
    if grave:
        items = tuple(f"{d.key} is {d.value!r}, in the spec's model it is {d.other!r}" for d in grave)
        yield Misfit(
            "configurations", f"'{own}' computes something else than the spec's model, '{folder}'", items, hint
        )
    if odd := _tokens_with_other_numbers(own, folder):
        named = listed([repr(token) for token in odd], 5)
        message = f"'{own}' numbers tokens otherwise than the tokenizer that reads the texts, in '{folder}'"
        yield Misfit("tokens", message, (named,), hint)


def _tokens_with_other_numbers(own: Path, folder: Path) -> list[str]:
    file, of_spec = own / "tokenizer.json", folder / "tokenizer.json"
    if file.is_file() and of_spec.is_file() and filecmp.cmp(file, of_spec, shallow=False):
        return []
    vocabularies = [vocabulary for place in (own, folder) if (vocabulary := read_vocabulary(place))]
    if len(vocabularies) < 2:
        return []
    mine, other = in_one_kind(vocabularies)
    trained = {token for token in {**mine.base, **other.base} if mine.numbers.get(token) != other.numbers.get(token)}
    added = {token for token in mine.added.keys() & other.added if mine.added[token] != other.added[token]}
    return sorted(trained | added)
