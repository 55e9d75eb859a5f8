"""The folder of a base with adapters merged into it: how it differs from the base's, and whose tokenizer it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue_cli.blend.adapters.adapted_base import AdaptedBase
from glue_cli.blend.adapters.adapter import Adapter
from glue_cli.blend.tokens import is_table
from glue_cli.blend.vocabulary import Vocabulary, in_one_kind, read_vocabulary
from glue_cli.checkpoints.companions import files_to_copy, look_into
from glue_cli.checkpoints.configuration import Changes
from glue_cli.checkpoints.destination import Destination, plan_destination
from glue_cli.checkpoints.header import Checkpoint, stem_of
from glue_cli.checkpoints.json_files import read_object
from glue_cli.checkpoints.tokenizer_files import is_of_tokenizer
from glue_cli.foundation.errors import CheckpointError

FindClass = Callable[[Checkpoint, Mapping[str, Any]], str | None]  # given a base and an adapter's configuration

_OUTPUT_LAYERS = ("lm_head.weight", "embed_out.weight")
_TASKS_OF_LANGUAGE = ("CAUSAL_LM", "SEQ_2_SEQ_LM")  # of PEFT
_WITH_LABELS = ("Classification", "ForQuestionAnswering")  # in the names of model classes whose outputs are labels


@dataclass(frozen=True)
class Merged:
    """A base with adapters merged into it, as a folder."""

    destination: Destination
    changes: Changes
    notes: tuple[str, ...]


def plan_merged(adapted: AdaptedBase, output: Path, *, card: bool, find_class: FindClass) -> Merged:
    """Decide what the files of a merged model contain.

    Args:
        find_class: finds the class of the adapted model, if the base lacks its head.
    Raises:
        CheckpointError: the adapters replace the embeddings, but have different tokenizers; or they change them, and
            not the output layer that shares their tensor.
    """
    _check_tied(adapted)
    folder, resized = adapted.base.folder, _resized(adapted)
    changes = Changes(
        class_names=_labels(adapted, architecture := _new_architecture(adapted, find_class)),
        n_tokens=resized,
        architecture=architecture,
        unties=_unties(adapted),
    )
    own, notes = _own_tokenizer(adapted, resized)
    along = None
    if folder:
        files = files_to_copy(folder, apart=[output])
        along = [path for path in files if own is None or not is_of_tokenizer(path.relative_to(folder))]
    stem = stem_of(adapted.base.files[0])
    destination = plan_destination(output, adapted.merged, model_folder=folder, companions=along, card=card, stem=stem)
    if own and destination.is_folder:
        theirs = [path for path in look_into(own).companions if is_of_tokenizer(path.relative_to(own))]
        destination = destination.with_companions((path, output / path.relative_to(own)) for path in theirs)
    return Merged(destination, changes, notes)


def _check_tied(adapted: AdaptedBase) -> None:
    """Check that adapters which change the embeddings change the output layer that shares their tensor as well."""
    from glue_cli.models.tasks import writes_text  # a plain blend has no model

    changed = [name for name in adapted.changed if is_table(name)]
    config = read_object(adapted.base.folder / "config.json") if adapted.base.folder else {}
    writes = any(writes_text(str(name)) for name in config.get("architectures") or ())
    tasks = {adapter.config.get("task_type") for adapter in adapted.adapters}
    has_output = writes and config.get("tie_word_embeddings") is not False and tasks <= {*_TASKS_OF_LANGUAGE, None}
    own = [name for name, _, _ in adapted.merged if name.endswith(_OUTPUT_LAYERS)]
    if changed and has_output and not own and not adapted.keeps_tied:
        raise CheckpointError(
            f"the adapters change '{changed[0]}', whose tensor the base's output layer shares",
            hint="PEFT then leaves the output layer as it was: merge each into its base by PEFT, and mix those",
        )


def _replaced(adapted: AdaptedBase) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the whole tensors in the adapters, which replace the base's or are added to them."""
    return {name: entry.shape for name, entry in adapted.adapters[0].plain.entries.items()}


def _new_head(adapted: AdaptedBase) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a new head's matrices: those that the base lacks, or has with another shape."""
    base = adapted.base.entries
    return {
        name: shape
        for name, shape in _replaced(adapted).items()
        if len(shape) == 2 and not is_table(name) and (name not in base or base[name].shape != shape)
    }


def _new_architecture(adapted: AdaptedBase, find_class: FindClass) -> str | None:
    """Return the class of the adapted model, if the adapters add a head that the base lacks."""
    if not any(name not in adapted.base.entries for name in _new_head(adapted)):
        return None
    return find_class(adapted.base, adapted.adapters[0].config)


def _labels(adapted: AdaptedBase, architecture: str | None) -> tuple[str, ...]:
    """Return the classes of a new head: as the adapters name them, else numbered as in transformers."""
    head, folder = _new_head(adapted), adapted.base.folder
    if not head or folder is None:
        return ()
    config = read_object(folder / "config.json")
    named = architecture or " ".join(map(str, config.get("architectures") or ()))
    if not any(kind in named for kind in _WITH_LABELS):
        return ()
    n_labels = list(head.values())[-1][0]
    said = [adapter.checkpoint.glue.get("class_names") for adapter in adapted.adapters]
    if isinstance(said[0], list) and len(said[0]) == n_labels and all(names == said[0] for names in said):
        return tuple(map(str, said[0]))
    known = config.get("id2label")
    if isinstance(known, dict) and len(known) == n_labels:
        return ()
    return tuple(f"LABEL_{number}" for number in range(n_labels))


def _resized(adapted: AdaptedBase) -> tuple[int, int] | None:
    """Return the number of rows in the base's embeddings and in the adapters'; None if they are equal.

    Raises:
        CheckpointError: the adapters' tables have different sizes.
    """
    base = adapted.base.entries
    tables = {name: shape[0] for name, shape in _replaced(adapted).items() if is_table(name) and shape}
    changed = {name: n for name, n in tables.items() if name in base and base[name].shape[:1] != (n,)}
    if not changed:
        return None
    kept = {name: entry.shape[0] for name, entry in base.items() if is_table(name) and entry.shape}
    before, now = base[next(iter(changed))].shape[0], next(iter(changed.values()))
    sizes = {**kept, **tables}
    wrong = [f"'{name}': {n:,}" for name, n in sizes.items() if n in (before, *changed.values()) and n != now]
    if wrong:
        raise CheckpointError(
            f"the adapters have embeddings of {now:,} rows, and the model has other tables by token",
            items=wrong,
            hint="save adapters with modules_to_save=['embed_tokens', 'lm_head'], as the model calls them",
        )
    return before, now


def _unties(adapted: AdaptedBase) -> bool:
    """Tell whether the output layer shared the embeddings' tensor in the base, and now has its own."""
    changed, folder = set(adapted.changed), adapted.base.folder
    own = [name for name, _, _ in adapted.merged if name.endswith(_OUTPUT_LAYERS)]
    if folder is None or not own:
        return False
    is_new = any(name not in adapted.base.entries for name in own)
    says_tied = read_object(folder / "config.json").get("tie_word_embeddings") is True
    return is_new or says_tied and any(is_table(name) and name in changed for name, _, _ in adapted.merged)


def _own_tokenizer(adapted: AdaptedBase, resized: tuple[int, int] | None) -> tuple[Path | None, tuple[str, ...]]:
    """Return the adapter folder whose tokenizer fits the adapters' embeddings, and a note; None for the base's.

    Raises:
        CheckpointError: the adapters have different tokenizers.
    """
    if not any(is_table(name) for name in _replaced(adapted)):
        return None, ()
    own_vocabularies = [(adapter, v) for adapter in adapted.adapters if (v := read_vocabulary(adapter.path))]
    if not own_vocabularies:
        if resized is None:
            return None, ()
        text = f"the adapters' embeddings have {resized[1]:,} rows, the base's {resized[0]:,}, and no adapter has"
        return None, (f"{text} its tokenizer beside it: that of the base goes along, without the added tokens",)
    _check_equal(own_vocabularies)
    return own_vocabularies[0][0].path, ()


def _check_equal(own_vocabularies: Sequence[tuple[Adapter, Vocabulary]]) -> None:
    first, *others = in_one_kind([vocabulary for _, vocabulary in own_vocabularies])
    differing = [
        str(adapter.path)
        for (adapter, _), own in zip(own_vocabularies[1:], others, strict=True)
        if own.numbers != first.numbers
    ]
    if differing:
        raise CheckpointError(
            f"the adapters replace the embeddings, and number tokens otherwise than '{own_vocabularies[0][0].path}'",
            items=differing,
            hint="merge each adapter into its base, and mix those: glue aligns the tokens that were added",
        )
