"""Turn what a language model is asked and replies into tokens, of which only the replies' are to be predicted."""

import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from glue_cli.data.dataset import Dataset, Ragged, Replies
from glue_cli.data.tokens import call, check_characters, in_chunks, open_tokenizer, padding_of
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.printable import shown
from glue_cli.foundation.progress import Noted, Progress
from glue_cli.running.losses import IGNORED

# Keys of a message, for what a model thinks and what it calls.
_THOUGHTS, _CALLS = ("reasoning_content", "reasoning", "thinking"), ("tool_calls", "function_call")


@dataclass(frozen=True)
class _Written:
    """An example as the text that the model reads.

    Attributes:
        spans: where the replies stand in it, by character: [start, stop).
        n_lost: replies that do not stand in it as they were given.
    """

    text: str
    spans: Sequence[tuple[int, int]]
    n_lost: int = 0


def tokenise_replies(
    replies: Replies,
    folder: Path | None,
    max_length: int | None,
    max_characters: int | None = None,
    *,
    where: str,
    progress: Progress,
) -> Dataset:
    """Turn prompts and completions, or conversations, into token ids; the tokens of all but the replies are ignored.

    A completion ends with the tokenizer's end of a text, which the model is to predict as well. A conversation is
    written by the model's chat template; the assistant's replies count, each with the special token that ends it, and
    with its reasoning and its calls of tools where the template writes them.
    Arguments, errors and the rest are those of `data.tokens.tokenise`.

    Raises:
        SpecError: also, the tokenizer has no chat template, or cannot tell which characters a token stands for.
        DataError: also, the chat template does not take a conversation, or no reply is within `max_length` tokens.
    """
    tokenizer, limit = open_tokenizer(folder, max_length, where)
    if not tokenizer.is_fast:
        raise SpecError(
            f"the tokenizer in '{folder}' does not tell where in the text a token stands, which {where} need",
            hint="add its tokenizer.json",
        )
    if replies.are_conversations:
        if not tokenizer.chat_template:
            raise SpecError(
                f"{where} are conversations, but the tokenizer in '{folder}' has no chat template",
                hint="add the chat_template.jinja of the model that was trained, or write the texts out as 'text'",
            )
        tools = replies.tools or [[]] * len(replies.examples)
        written = [
            _write_conversation(partial(_apply_template, tokenizer, tools=own or None), tokenizer, messages, at)
            for number, (messages, own) in enumerate(zip(replies.examples, tools, strict=True), 1)
            for at in [f"{where}, conversation {number} (from 1)"]
        ]
    else:
        written = [
            _Written(prompt + reply, [(len(prompt), len(prompt + reply))]) for prompt, reply in replies.examples
        ]
    check_characters([each.text for each in written], max_characters, where)
    tokens, wanted = _encode(tokenizer, written, limit, ends=not replies.are_conversations, progress=progress)
    has_reply = torch.tensor([bool((row[1:] != IGNORED).any()) for row in _rows(wanted)])
    if not has_reply.any():
        raise DataError(
            f"{where}: none has a reply within {limit:,} tokens, so there is nothing for a language model to predict",
            hint="raise data.max_length in the spec, unless the replies are empty",
        )
    if n_left := int((~has_reply).sum()):
        progress(
            Noted(f"{where}: {n_left:,} of {len(written):,} have no reply within {limit:,} tokens and are left out")
        )
    if n_lost := sum(each.n_lost for each in written):
        progress(Noted(f"{where}: the model's chat template does not write {n_lost:,} replies out; they do not count"))
    kept = has_reply.nonzero().squeeze(1)
    return Dataset(tokens[kept], wanted[kept].following())


def _write_conversation(
    write: Callable[..., str], tokenizer: Any, messages: Sequence[Mapping[str, Any]], at: str
) -> _Written:
    """Write a conversation out, and find the replies in it.

    Args:
        write: takes messages and their place, and returns what the chat template makes of them.
    """
    text = write(messages, at)
    place, spans, n_lost = 0, list[tuple[int, int]](), 0
    for n_before, message in enumerate(messages):
        is_reply, words = message.get("role") == "assistant", _words_of(message)
        has_more = is_reply and n_before > 0 and any(message.get(key) for key in (*_THOUGHTS, *_CALLS))
        if not words and not has_more:
            continue
        if is_reply and n_before:  # a short reply may stand in its own heading, too
            heading = write(messages[:n_before], at, add_generation_prompt=True)
            place = max(place, len(os.path.commonprefix([heading, text])))
        whole = write(messages[: n_before + 1], at).rstrip() if has_more else ""
        if len(whole) > place and text.startswith(whole):
            start, place = len(text) - len(text[place:].lstrip()), len(whole)
            spans.append((start, place))
            continue
        following = next(filter(None, map(_words_of, messages[n_before + 1 :])), "")
        start = _find_words(text, place, message, following)
        if start >= 0:
            place = start + len(words)
            if is_reply:
                spans.append((start, _end(tokenizer, text, place)))
        n_lost += is_reply and start < 0
    return _Written(text, spans, n_lost)


def _words_of(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def _find_words(text: str, place: int, message: Mapping[str, Any], following: str) -> int:
    """Return where a message's words stand in a text, from a place on, after its thoughts; -1 if they do not.

    Args:
        following: the words of the next message. If they come first, the template has left this message out.
    """
    for thought in (message.get(key) for key in _THOUGHTS):
        if isinstance(thought, str) and thought.strip():
            found, limit = text.find(thought.strip(), place), text.find(following, place) if following else -1
            if 0 <= found and (limit < 0 or found <= limit):
                place = found + len(thought.strip())
    words = _words_of(message)
    start = text.find(words, place) if words else -1
    return -1 if following and start > text.find(following, place) >= 0 else start


def _end(tokenizer: Any, text: str, stop: int) -> int:
    """Return where a reply ends that stops at a place, the special token behind it included."""
    rest = text[stop:]
    behind = len(rest) - len(rest.lstrip())
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return next((stop + behind + len(token) for token in special if rest.startswith(token, behind)), stop)


def _apply_template(tokenizer: Any, messages: Sequence[Mapping[str, Any]], at: str, **options: Any) -> str:
    options = {name: value for name, value in options.items() if value is not None}
    try:
        written = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:  # a template can raise what it likes
        reason = shown(str(error).strip().partition("\n")[0])
        raise DataError(
            f"{at}: the model's chat template does not take it: {reason}",
            hint="mend the conversation, or write the texts out as 'text'",
        ) from error
    assert isinstance(written, str)
    return written


def _encode(
    tokenizer: Any, written: Sequence[_Written], limit: int, *, ends: bool, progress: Progress
) -> tuple[Ragged, Ragged]:
    """Return the token ids, and the same with `IGNORED` in place of all that are no reply's.

    Args:
        ends: whether each text ends with the tokenizer's end of a text, unless it was cut.
    """
    options = {"truncation": True, "max_length": limit, "padding": False, "verbose": False}
    options |= {"return_offsets_mapping": True, "add_special_tokens": ends}
    wanted = list[Sequence[int]]()

    def rows() -> Iterator[Sequence[int]]:
        for chunk in in_chunks(written, progress):
            found = call(tokenizer, [each.text for each in chunk], **options)
            for each, row, places in zip(chunk, found["input_ids"], found["offset_mapping"], strict=True):
                kept = _kept(each, row, places)
                is_whole = max((stop for _, stop in places), default=0) >= len(each.text.rstrip())
                if ends and is_whole and (end := tokenizer.eos_token_id) is not None:
                    if row[-1:] == [end]:
                        kept[-1] = end
                    elif len(row) < limit:
                        row, kept = [*row, end], [*kept, end]
                wanted.append(array("i", kept))
                yield row

    tokens = Ragged.of(rows(), padding_of(tokenizer))
    return tokens, replace(tokens, values=Ragged.of(wanted).values)


def _kept(each: _Written, row: Sequence[int], places: Sequence[tuple[int, int]]) -> list[int]:
    """Return the tokens of a text, `IGNORED` in place of those that are no reply's."""
    counts = bytearray(len(each.text))  # by character
    for start, stop in each.spans:
        counts[start:stop] = b"\1" * (stop - start)
    return [token if 1 in counts[start:stop] else IGNORED for token, (start, stop) in zip(row, places, strict=True)]


def _rows(ragged: Ragged) -> Iterator[torch.Tensor]:
    for start, length in zip(ragged.starts.tolist(), ragged.lengths.tolist(), strict=True):
        yield ragged.values[start : start + length]
