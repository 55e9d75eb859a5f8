"""Turn texts and the texts to be made of them into tokens, for models of an encoder and a decoder."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from glue_cli.checkpoints.json_files import read_object
from glue_cli.data.dataset import Dataset, Ragged, Replies
from glue_cli.data.tokens import call, check_characters, in_chunks, open_tokenizer, padding_of
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.progress import Progress
from glue_cli.running.losses import IGNORED


def is_encoder_decoder(folder: Path | None) -> bool:
    """Tell whether the model in a folder of transformers has an encoder and a decoder, by its configuration."""
    return folder is not None and read_object(folder / "config.json").get("is_encoder_decoder") is True


def tokenise_seq2seq(
    replies: Replies,
    folder: Path | None,
    max_length: int | None,
    max_characters: int | None = None,
    *,
    where: str,
    progress: Progress,
) -> Dataset:
    """Turn prompts, which the encoder reads, and completions, which the decoder writes, into token ids.

    Each is cut to `max_length`, and gets the special tokens that the tokenizer gives to such a text. Arguments, errors
    and the rest are those of `data.tokens.tokenise`.

    Raises:
        SpecError: also, they are conversations.
        DataError: also, a text gives no token.
    """
    if replies.are_conversations:
        raise SpecError(
            f"{where} are conversations, which the encoder and decoder of the model in '{folder}' do not take",
            hint="write what is asked and what is replied in two columns, named in data.columns as prompt, completion",
        )
    tokenizer, limit = open_tokenizer(folder, max_length, where)
    check_characters([text for pair in replies.examples for text in pair], max_characters, where)
    read, written = zip(*replies.examples, strict=True)
    options = {"truncation": True, "max_length": limit, "padding": False, "verbose": False}

    def encode(what: str, texts: Sequence[str], argument: str, padding: int) -> Ragged:
        chunks = (call(tokenizer, **{argument: chunk}, **options)["input_ids"] for chunk in in_chunks(texts, progress))
        tokens = Ragged.of(chain.from_iterable(chunks), padding)
        if not tokens.lengths.all():
            number = int((tokens.lengths == 0).nonzero()[0]) + 1
            raise DataError(f"{where}: row {number} (from 1) has a {what} that gives no token", hint="remove the row")
        return tokens

    inputs = encode("prompt", read, "text", padding_of(tokenizer))
    targets = encode("completion", written, "text_target", IGNORED)
    return Dataset(inputs, targets, has_decoder=True)
