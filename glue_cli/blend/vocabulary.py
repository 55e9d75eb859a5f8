"""Read the vocabularies of experts in Hugging Face folders: which token has which number. Needs no library."""

import base64
import filecmp
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.json_files import read_object
from glue_cli.foundation.regular_files import read_bytes, read_text

Numbers = Mapping[str, int]  # of tokens

# Kinds of piece in a sentencepiece file that do not stand for text: unknown, control.
_NO_TEXT = (2, 3)
_DIGITS = 10  # a token's number has fewer digits than this
_PREPARING = ("normalizer", "pre_tokenizer", "post_processor")  # parts of a tokenizer.json
_SETTINGS = ("add_bos_token", "add_eos_token", "do_lower_case")  # of a tokenizer_config.json
_LARGEST = 64 << 20  # bytes of a file of pieces that is still read; the largest known have 15 MB


# How sentence-transformers prepares texts: their case and length, and what is put before them.
_OF_SENTENCES = ("sentence_bert_config.json", "config_sentence_transformers.json")
_BY_DEFAULT = {"similarity_fn_name": "cosine"}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a folder.

    Attributes:
        folder: where they are kept.
        tables: the numbers of the tokens that the tokenizer was trained with, by the kind of file that keeps them; a
            folder may have several kinds, which may number the same tokenizer's tokens differently.
        added: the numbers of tokens that were added later, or that the tokenizer treats as special.
    """

    folder: Path
    tables: Mapping[str, Numbers]
    added: Numbers

    @cached_property
    def base(self) -> Numbers:
        return next(iter(self.tables.values()), {})

    @cached_property
    def numbers(self) -> Numbers:
        return {**self.base, **self.added}


def in_one_kind(vocabularies: Sequence[Vocabulary]) -> list[Vocabulary]:
    """Return the same vocabularies, all from a kind of file that every folder has.

    If there is none, as with `tokenizer.model` alone in one folder and `tokenizer.json` in another, a vocabulary whose
    tokens have the order of the first is taken to be the first: some libraries shift all numbers of a file equally.
    """
    kind = next((kind for kind in ("tokenizer.json", *_READERS) if all(kind in v.tables for v in vocabularies)), None)
    if kind:
        return [Vocabulary(v.folder, {kind: v.tables[kind]}, v.added) for v in vocabularies]
    first, *others = vocabularies
    return [first, *(Vocabulary(v.folder, first.tables, v.added) if _has_order_of(v, first) else v for v in others)]


def _has_order_of(one: Vocabulary, other: Vocabulary) -> bool:
    shared = one.base.keys() & other.base.keys()
    moves = {one.base[token] - other.base[token] for token in shared}
    return len(moves) == 1 and 2 * len(shared) > min(len(one.base), len(other.base))


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Return a folder's tokens with their numbers; None if it has none that glue can read.

    A diffusers pipeline keeps them in its subfolder `tokenizer`.
    """
    for place in (folder, folder / "tokenizer"):
        fast = read_object(place / "tokenizer.json")
        read = {"tokenizer.json": _trained(fast), **{kind: reader(place) for kind, reader in _READERS.items()}}
        tables = {kind: numbers for kind, numbers in read.items() if numbers}
        added = _added(place, fast.get("added_tokens"))
        if tables or added:
            return Vocabulary(place, tables, added)
    return None


def preparation_notes(folders: Sequence[Path]) -> list[str]:
    """Return sentences on tokenizers that prepare texts otherwise than the first one, such as in lower case."""
    read = [folder for folder in folders if (folder / "tokenizer.json").is_file()]
    notes = []
    for folder in read[1:]:
        if differing := _preparing_differently(read[0], folder):
            named = " and ".join(differing)
            notes.append(f"{folder} has another {named} than {read[0]}, so that it may read texts as other tokens")
        templates = [_chat_template(each) for each in (read[0], folder)]
        if None not in templates and templates[0] != templates[1]:
            notes.append(f"{folder} writes conversations by another chat template than {read[0]}")
        for name in _OF_SENTENCES:
            said, said_by_other = (read_object(each / name) for each in (read[0], folder))
            keys = [key for key in dict.fromkeys((*said, *said_by_other)) if not key.startswith("__")]
            if differing := [key for key in keys if _meant(key, said) != _meant(key, said_by_other)]:
                notes.append(f"{folder}/{name} differs from that of {read[0]} in {' and '.join(differing)}")
    return notes


def _meant(key: str, said: Mapping[str, Any]) -> object:
    """Return a setting of sentence-transformers in one spelling, as its versions write it differently."""
    value = said.get(key) or _BY_DEFAULT.get(key)
    return {name: text for name, text in value.items() if text} or None if isinstance(value, dict) else value


def _preparing_differently(one: Path, other: Path) -> list[str]:
    """Return what two tokenizers have differently of what makes tokens of a text, but for the vocabulary."""
    differing = []
    if not filecmp.cmp(one / "tokenizer.json", other / "tokenizer.json", shallow=False):
        said, said_by_other = (read_object(folder / "tokenizer.json") for folder in (one, other))
        differing += [key for key in _PREPARING if said.get(key) != said_by_other.get(key)]
        if _merges(said) != _merges(said_by_other):
            differing.append("list of merges")
    settings, of_other = (read_object(folder / "tokenizer_config.json") for folder in (one, other))
    given = [key for key in _SETTINGS if key in settings and key in of_other]
    differing += [key for key in given if settings[key] != of_other[key]]
    return differing


def _merges(tokenizer: Mapping[str, Any]) -> list[Any]:
    """Return the merges of a `tokenizer.json` in one spelling: pairs, which older files join by a space."""
    model = tokenizer.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges] if isinstance(merges, list) else []


def _chat_template(folder: Path) -> object:
    with suppress(OSError, UnicodeDecodeError):
        return (folder / "chat_template.jinja").read_text(encoding="utf-8").strip()
    said = read_object(folder / "tokenizer_config.json").get("chat_template")
    return said.strip() if isinstance(said, str) else said


def _added(folder: Path, listed: object) -> Numbers:
    """Return the added tokens that `tokenizer.json` and two other files list."""
    pairs: list[tuple[object, object]] = list(read_object(folder / "added_tokens.json").items())
    pairs += (
        [(t.get("content"), t.get("id")) for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
    )
    by_number = read_object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for number, token in by_number.items() if isinstance(by_number, dict) else ():
        if isinstance(token, dict) and number.isdecimal() and len(number) < _DIGITS:
            pairs.append((token.get("content"), int(number)))
    return _of_numbers(pairs)


def _of_numbers(pairs: Iterable[tuple[object, object]]) -> Numbers:
    """Return those pairs that really are a token and its number."""
    return {token: n for token, n in pairs if isinstance(token, str) and type(n) is int and n >= 0}


def _trained(tokenizer: Mapping[str, Any]) -> Numbers:
    """Return the tokens of the model in a `tokenizer.json`."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of a unigram model: [[token, score], ...]
        return _of_numbers((piece[0], n) for n, piece in enumerate(vocabulary) if isinstance(piece, list) and piece)
    return _of_numbers(vocabulary.items()) if isinstance(vocabulary, dict) else {}


def _json(folder: Path) -> Numbers:
    numbers = read_object(folder / "vocab.json")
    nested = {f"{key} {token}": n for key, own in numbers.items() if isinstance(own, dict) for token, n in own.items()}
    return _of_numbers((numbers | nested).items())  # speech models of several languages have a vocabulary for each


def _lines(folder: Path) -> Numbers:
    try:
        text = read_text(folder / "vocab.txt")
    except (OSError, ValueError):
        return {}
    # not splitlines, which would also split at characters that are tokens
    return {token: number for number, token in enumerate(text.removesuffix("\n").split("\n"))} if text else {}


def _pieces(folder: Path) -> Numbers:
    """Return the pieces of a sentencepiece file, or of a tiktoken file, which in Llama 3 has the same extension."""
    for file in sorted((*folder.glob("*.model"), *folder.glob("*.tiktoken"))):
        try:
            data = read_bytes(file) if file.stat().st_size <= _LARGEST else b""
        except OSError:
            continue
        for read in (_sentencepiece, _tiktoken):
            try:
                if pieces := read(data):
                    return pieces
            except (ValueError, IndexError, KeyError, TypeError, AttributeError):  # not a file of this format
                continue
    return {}


def _sentencepiece(data: bytes) -> Numbers:
    numbers = {}
    for number, piece in enumerate(value for field, value in _fields(data) if field == 1):
        parts = dict(_fields(piece))
        if parts.get(3) not in _NO_TEXT:
            numbers[parts[1].decode()] = number
    return numbers


def _tiktoken(data: bytes) -> Numbers:
    lines = (line.split() for line in data.decode("ascii").splitlines())
    return {_as_text(base64.b64decode(token, validate=True)): int(number) for token, number in lines}


def _tekken(folder: Path) -> Numbers:
    listed = read_object(folder / "tekken.json").get("vocab")
    try:
        return {_as_text(base64.b64decode(entry["token_bytes"])): int(entry["rank"]) for entry in listed or ()}
    except (ValueError, KeyError, TypeError):
        return {}


def _as_text(token: bytes) -> str:
    """Return bytes as the vocabularies of GPT-2 and its kind spell them: one printable character for each byte."""
    return "".join(_BYTES[byte] for byte in token)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field of a protobuf message; the field's kind gives the value's length.

    Raises:
        ValueError, IndexError, KeyError: the bytes are not such a message.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if kind == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}[kind]
        if at + length > len(data):
            raise ValueError("cut off")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number that is stored in seven bits per byte, lowest first, and the position after it."""
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return number, at


_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = (byte for byte in range(256) if byte not in _PRINTABLE)
_BYTES = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + place) for place, byte in enumerate(_OTHERS)}

# Kinds of file beside tokenizer.json.
_READERS: Mapping[str, Callable[[Path], Numbers]] = {
    "vocab.json": _json,
    "vocab.txt": _lines,
    "pieces": _pieces,
    "tekken.json": _tekken,
}
