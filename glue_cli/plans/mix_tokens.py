"""A mix of experts that added different tokens: whether its tokenizer can be written, and what the spec needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glue_cli.blend.tokens import TokenPlan
from glue_cli.blend.vocabulary import in_one_kind, read_vocabulary
from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.json_files import read_object
from glue_cli.foundation.errors import CheckpointError, SpecError, UsageError

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec

_LISTED = 5  # at most this many tokens in a message


def check_tokenizer_is_written(tokens: TokenPlan, experts: Sequence[Checkpoint], destination: Destination) -> None:
    """Check that a tokenizer that no expert has can be written with the blend.

    Raises:
        UsageError: the blend is a single file, which has no tokenizer beside it.
        CheckpointError: the tokenizer to extend has no `tokenizer.json`.
    """
    if not tokens.new or any(copy.name == "tokenizer.json" for _, copy in destination.companions):
        return
    what = f"no expert's tokenizer has all tokens of the blend: {experts[tokens.keeper].path} lacks"
    message = f"{what} {', '.join(repr(token.text) for token in tokens.new[:_LISTED])}"
    if destination.is_folder:
        raise CheckpointError(message, hint="save its tokenizer with a tokenizer.json, which glue can extend")
    raise UsageError(message, hint="let the blend be a folder, with a tokenizer of its own: -o prior/")


def spec_with_rows(spec: "Spec", tokens: TokenPlan) -> "Spec":
    """Return the spec with the blend's number of tokens, if it is a transformers model built from a folder.

    Raises:
        SpecError: that folder's tokenizer, which reads the texts, gives tokens other numbers than the blend.
    """
    if (folder := spec.model_folder) is None:
        return spec
    if vocabulary := read_vocabulary(folder):
        (own,) = in_one_kind([tokens.vocabulary, vocabulary])[1:]
        odd = sorted(token for token, number in own.numbers.items() if tokens.vocabulary.numbers.get(token) != number)
        if odd:
            raise SpecError(
                f"model.args.path: the tokenizer of '{folder}' numbers tokens otherwise than the blend",
                items=[repr(token) for token in odd],
                hint=f"set model.args.path to {tokens.vocabulary.folder}",
            )
    if "vocab_size" in spec.model.args or "vocab_size" not in read_object(folder / "config.json"):
        return spec
    return spec.with_model_args(vocab_size=tokens.n_rows)
