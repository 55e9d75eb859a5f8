"""Turn texts into token ids with the tokenizer in the model's folder."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from glue_cli.checkpoints.json_files import read_object
from glue_cli.data.dataset import Dataset, Ragged, Texts
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.imports import import_beside_torchvision
from glue_cli.foundation.printable import shown
from glue_cli.foundation.progress import Advanced, Finished, Noted, Progress, Started
from glue_cli.foundation.regular_files import find_irregular

# Without one of these files, transformers creates a tokenizer with an empty vocabulary.
_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_DEFAULT_LENGTH = 512
_RESERVED, _FROM_PADDING = 2, ("roberta", "camembert", "mpnet", "longformer", "xlm-r", "esm")
MOST_CHARACTERS = 4_000_000  # a long novel; with 90 million, tokenizers run out of memory and end the process
LONGER_TEXTS = "split the text into several, or raise data.max_characters in the spec"
_CHUNK = 1000  # texts per call of the tokenizer, which uses all cores for them

T = TypeVar("T")


def tokenise(
    texts: Texts,
    folder: Path | None,
    max_length: int | None,
    max_characters: int | None = None,
    *,
    where: str,
    progress: Progress,
) -> Dataset:
    """Turn texts, or pairs of them, into token ids, each cut to `max_length`; of a pair, the longer one is cut first.

    Texts without targets get the following tokens as targets; those of fewer than two tokens are left out.

    Args:
        folder: the model's folder, with the tokenizer's files; None if the model has none.
        max_length: by default the tokenizer's own limit, at most 512.
        max_characters: of a text; by default 4,000,000.
        where: the name of these texts in messages.
    Raises:
        SpecError: the model has no tokenizer, or one with a lower limit, or transformers is not installed.
        DataError: a text is too long, one with a target gives no token, or no text gives two.
    """
    check_characters(texts.texts, max_characters, where)
    check_characters(texts.pairs or (), max_characters, where)
    tokenizer, limit = open_tokenizer(folder, max_length, where)
    tokens = _encode(tokenizer, texts, limit, progress)
    if texts.targets is not None:
        if not tokens.lengths.all():
            number = int((tokens.lengths == 0).nonzero()[0]) + 1
            raise DataError(f"{where}: text {number} (from 1) gives no token", hint="remove it")
        return Dataset(tokens, texts.targets, texts.class_names)
    kept = tokens[(tokens.lengths > 1).nonzero().squeeze(1)]
    if len(kept) == 0:
        raise DataError(
            f"{where}: none has two tokens or more, so there is nothing for a language model to predict",
            hint="look at the texts and at the tokenizer in the model's folder",
        )
    if len(kept) < len(tokens):
        n_short = len(tokens) - len(kept)
        progress(Noted(f"{where}: {n_short:,} of {len(tokens):,} have less than two tokens and are left out"))
    return Dataset(kept, kept.following())


def check_characters(texts: Sequence[str], max_characters: int | None, where: str) -> None:
    """Check that no text is too long to be read.

    Raises:
        DataError: one is.
    """
    most = max_characters or MOST_CHARACTERS
    for number, text in enumerate(texts, 1):
        if len(text) > most:
            raise DataError(
                f"{where}: text {number} (from 1) has {len(text):,} characters, more than {most:,}",
                hint=LONGER_TEXTS,
            )


def in_chunks(examples: Sequence[T], progress: Progress) -> Iterator[Sequence[T]]:
    """Yield examples in parts that the tokenizer takes at once, and report how many are done."""
    progress(Started("tokenise", len(examples), "texts"))
    for start in range(0, len(examples), _CHUNK):
        yield examples[start : start + _CHUNK]
        progress(Advanced(min(start + _CHUNK, len(examples))))
    progress(Finished())


def call(tokenizer: Any, *texts: Sequence[str], **options: Any) -> Any:
    """Return what a tokenizer makes of texts.

    Raises:
        SpecError: its files are damaged.
    """
    try:
        return tokenizer(*texts, **options)
    except BaseException as error:
        if not _is_panic(error) and type(error) is not Exception:  # which the library raises, of no class of its own
            raise
        raise SpecError(f"the model's tokenizer fails: {shown(error)}", hint="copy its files again") from error


def padding_of(tokenizer: Any) -> int:
    """Return the token that fills short texts in a batch, if the model does not say which; see `data.splits`."""
    padding: list[int | None] = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]  # GPT-2 has no padding token
    return next(token for token in padding if token is not None)


def _encode(tokenizer: Any, texts: Texts, max_length: int, progress: Progress) -> Ragged:
    types = array("i")
    options = {"truncation": True, "max_length": max_length, "padding": False, "verbose": False}
    examples = [texts.texts] if texts.pairs is None else [texts.texts, texts.pairs]

    def rows() -> Iterator[Sequence[int]]:
        for chunk in in_chunks(list(zip(*examples, strict=True)), progress):
            found = call(tokenizer, *map(list, zip(*chunk, strict=True)), **options)
            for row in found.get("token_type_ids", ()) if texts.pairs is not None else ():
                types.extend(row)
            yield from found["input_ids"]

    tokens = Ragged.of(rows(), padding_of(tokenizer))
    return replace(tokens, types=torch.frombuffer(types, dtype=torch.int32)) if types else tokens


def open_tokenizer(folder: Path | None, max_length: int | None, where: str) -> tuple[Any, int]:
    """Return the tokenizer in a folder, and how many tokens of a text are read: by default 512.

    At most its own limit, and the model's positions.

    Raises:
        SpecError: there is none, or one with a limit below `max_length`, or transformers is not installed.
    """
    tokenizer = load_tokenizer(folder, where)
    if max_length is not None and max_length > tokenizer.model_max_length:
        raise SpecError(
            f"data.max_length is {max_length:,}, but the tokenizer in '{folder}' is made for texts of at most "
            f"{tokenizer.model_max_length:,} tokens",
            hint="lower data.max_length",
        )
    assert folder is not None
    return tokenizer, max_length or min(tokenizer.model_max_length, _DEFAULT_LENGTH, _positions(folder))


def _positions(folder: Path) -> int:
    """Return how many tokens a model has positions for, as its configuration says; without one, a default."""
    config = read_object(folder / "config.json")
    known = [config.get(key) for key in ("max_position_embeddings", "n_positions")]
    n = next((n for n in known if type(n) is int and n > _RESERVED), _DEFAULT_LENGTH)
    # RoBERTa and its kin count positions from behind the padding's.
    return n - _RESERVED if any(kin in str(config.get("model_type")) for kin in _FROM_PADDING) else n


def load_tokenizer(folder: Path | None, where: str) -> Any:
    """Return the tokenizer in a folder, without looking elsewhere or running code from the folder."""
    if folder is None:
        raise SpecError(
            f"{where} need a model of transformers, by whose tokenizer they are read",
            hint="set model: {arch: 'transformers:AutoModelForSequenceClassification', args: {path: FOLDER}}",
        )
    try:
        transformers = import_beside_torchvision("transformers")
    except ImportError as error:
        raise SpecError(
            "texts need transformers, which is not installed", hint="pip install 'glue-cli[hf]'"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    wanted = "the tokenizer's files, such as tokenizer.json, next to config.json"
    if not any((folder / name).is_file() for name in _FILES):
        raise SpecError(f"'{folder}' has no tokenizer: wanted {' or '.join(_FILES)}", hint=f"put {wanted}")
    if odd := find_irregular(folder.iterdir()):
        raise SpecError(f"'{odd}' is no regular file", hint=f"put {wanted}")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except BaseException as error:  # a damaged file can make transformers and its parsers raise anything
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        reason = shown(str(error).strip().partition("\n")[0])
        raise SpecError(f"the tokenizer in '{folder}' cannot be read: {reason}", hint=f"put {wanted}") from error


def _is_panic(error: BaseException) -> bool:
    """Tell whether an error is a panic in Rust, which a parser raises in a state meant to be impossible."""
    return type(error).__name__ == "PanicException"
