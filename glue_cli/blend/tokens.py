"""Align experts that added different tokens to one vocabulary: which of their embeddings' rows make each blended row.

Needs no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glue_cli.blend.misfit import Misfit
from glue_cli.blend.recipe import Recipe, matches
from glue_cli.blend.vocabulary import Numbers, Vocabulary, in_one_kind, read_vocabulary
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint
from glue_cli.checkpoints.json_files import read_object
from glue_cli.checkpoints.tokenizer_files import AddedToken, read_added_token
from glue_cli.foundation.units import listed

_TRANSPOSED = "*final_logits_bias"  # of BART and its kin: [1, tokens]
# Names of tensors with a row for each token.
_EMBEDDINGS = (
    *("*embed_tokens*.weight", "*word_embedding*.weight", "*tok_embeddings*.weight", "*token_embedding*.weight"),
    *("*wte.weight", "*shared.weight", "*embed_in.weight", "*embed.weight", "*embedding.weight", "*embeddings.weight"),
    *("*lm_head*.weight", "*lm_head*.bias", "*embed_out.weight", "output.weight", "*lm_loss.weight", "*lm_loss.bias"),
    *("*predictions.decoder.*", "*predictions.bias", "*vocab_projector.*", "decoder.weight", "decoder.bias"),
    _TRANSPOSED,
)
_OTHER_TABLES = ("*position*", "*token_type*", "*patch*", "*segment*", "*time*", "*class_embedding*", "*norm*")


@dataclass(frozen=True)
class TokenPlan:
    """How the rows of a blend's embeddings are made from those of its experts.

    Attributes:
        names: the tensors with a row for each token.
        n_rows: their number of rows in the blend.
        odd: for each row of the blend that has another number in some expert, its number in each expert [K], -1 if
            that has no such row. All other rows have the same number everywhere.
        keeper: the expert whose configuration and tokenizer the blend gets.
        new: the tokens that its tokenizer lacks; vocabulary: its own vocabulary with these added.
    """

    names: tuple[str, ...]
    n_rows: int
    odd: Mapping[int, tuple[int, ...]]
    keeper: int
    new: tuple[AddedToken, ...]
    vocabulary: Vocabulary

    def shape_of(self, name: str, experts: Sequence[Checkpoint]) -> tuple[int, ...]:
        """Return the shape that a tensor has in the blend."""
        shape = list(experts[0].entries[name].shape)
        shape[row_axis(name)] = self.n_rows
        return tuple(shape)

    def resized(self, experts: Sequence[Checkpoint]) -> tuple[int, int] | None:
        """Return the keeper's and the blend's numbers of rows; None if the rows are not aligned."""
        if not self.names:
            return None
        name = self.names[0]
        return experts[self.keeper].entries[name].shape[row_axis(name)], self.n_rows

    def note(self, experts: Sequence[Checkpoint]) -> str:
        """Return a sentence that tells the user how the rows are aligned."""
        moved = [token for token, number in self.vocabulary.numbers.items() if number in self.odd]
        if not moved:
            return f"the experts have unequal numbers of rows by token; the blend has the most, {self.n_rows:,}"
        return (
            f"the experts added different tokens: {_named(moved)} come from those that have them,"
            f" and are numbered as in {experts[self.keeper].path}"
        )


def row_axis(name: str) -> int:
    """Return the dimension along which a tensor has a row for each token."""
    return int(matches(name, [_TRANSPOSED]))


def is_table(name: str) -> bool:
    """Tell whether a tensor's name is one of those that have a row for each token."""
    return matches(name, _EMBEDDINGS) and not matches(name, _OTHER_TABLES)


def align_tokens(
    experts: Sequence[Checkpoint], recipe: Recipe, *, dtype_given: bool
) -> tuple[TokenPlan | None, list[Misfit]]:
    """Compare the experts' vocabularies; return how to align the rows, None if they are aligned already.

    Vocabularies that differ in added tokens are aligned. If one expert has all tokens, its numbers are used; else
    those of the first expert, followed by the tokens that it lacks.

    Returns:
        None with a misfit if the vocabularies differ in more than added tokens, or there is no tensor to align.
    """
    read = [read_vocabulary(expert.model_folder) if expert.model_folder else None for expert in experts]
    known = in_one_kind(vocabularies) if (vocabularies := [each for each in read if each]) else []
    if misfits := _unequal_bases(known):
        return None, misfits
    is_equal = all(vocabulary.numbers == known[0].numbers for vocabulary in known)
    if is_equal and len(known) < len(experts):
        return None, []  # nothing shows that they differ
    names, sizes = _find_tables(experts, recipe)
    if is_equal and len(set(sizes)) <= 1:
        return None, []
    if misfits := _unalignable(experts, read, names, dtype_given=dtype_given):
        return None, misfits
    sources = {recipe.copied_from.get(name) for name in names}
    if len(sources) == 1 and (k := sources.pop()) is not None:  # all are copied from one expert
        return TokenPlan((), sizes[k], {}, k, (), known[k]), []
    plan = _plan(names, sizes, known)
    return plan if plan.odd else None, []


def _unequal_bases(known: Sequence[Vocabulary]) -> list[Misfit]:
    """Return a misfit if a token that a tokenizer was trained with has another number in some vocabulary."""
    items = []
    for vocabulary in known[1:]:
        first, tokens = known[0].numbers, vocabulary.numbers
        base = {**known[0].base, **vocabulary.base}
        odd = sorted(token for token in base if first.get(token) != tokens.get(token))
        if odd:
            counts = f"{len(tokens):,} tokens, {known[0].folder} has {len(first):,}"
            items.append(f"{vocabulary.folder}: {counts}; they differ in {_named(odd)}")
    hint = "blend models whose tokenizers are the same, but for tokens that were added"
    return [_misfit("the experts have unequal vocabularies", items, hint)] if items else []


def _misfit(message: str, items: Sequence[str], hint: str) -> Misfit:
    return Misfit("vocabularies", message, tuple(items), hint)


def _named(tokens: Sequence[str]) -> str:
    return listed([repr(token) for token in tokens])


def _find_tables(experts: Sequence[Checkpoint], recipe: Recipe) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the tensors that have a row for each token in every expert, and each expert's number of rows [K]."""
    folders = [expert.model_folder for expert in experts]
    stated = [set(_vocabulary_sizes(read_object(f / "config.json"))) if f else set() for f in folders]
    sizes_by_name: dict[str, tuple[int, ...]] = {}
    for name in experts[0].entries:
        shapes = [e.shape for expert in experts if (e := expert.entries.get(name)) and e.dtype in FLOAT_DTYPES]
        axis = row_axis(name)
        others = {shape[:axis] + shape[axis + 1 :] for shape in shapes}
        if name in recipe.made or len(shapes) < len(experts) or not all(shapes) or len(others) > 1:
            continue
        sizes = tuple(shape[axis] for shape in shapes)
        if all(not own or size in own for own, size in zip(stated, sizes, strict=True)):
            follows = all(stated) and len(set(sizes)) > 1  # as each expert's vocabulary does
            if follows or is_table(name):
                sizes_by_name[name] = sizes
    sizes = max(sizes_by_name.values(), default=())
    return tuple(name for name, own in sizes_by_name.items() if own == sizes), sizes


def _vocabulary_sizes(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if key == "vocab_size" and type(value) is int:
            yield value
        elif isinstance(value, dict):
            yield from _vocabulary_sizes(value)


def _unalignable(
    experts: Sequence[Checkpoint], read: Sequence[Vocabulary | None], names: Sequence[str], *, dtype_given: bool
) -> list[Misfit]:
    """Return a misfit if the rows of the experts' embeddings cannot be aligned by token."""
    silent = [str(expert.path) for expert, vocabulary in zip(experts, read, strict=True) if not vocabulary]
    if silent:
        message = "the experts added different tokens, and these experts do not say theirs"
        return [_misfit(message, silent, "put their tokenizers beside their weights")]
    if not names:
        message = "the experts added different tokens, and none of their tensors has a row for each"
        items = [f"{v.folder}: {_named(sorted(v.added, key=v.added.__getitem__))}" for v in read if v]
        return [_misfit(message, items, "blend models with one and the same tokenizer")]
    for name in names:
        dtypes = {expert.entries[name].dtype for expert in experts}
        if len(dtypes) > 1 and not dtype_given:
            items = [f"{expert.path}: '{name}' is {expert.entries[name].dtype}" for expert in experts]
            return [_misfit("the experts differ in dtype", items, "say what to blend to: --dtype float32")]
    return []


def _plan(names: tuple[str, ...], sizes: Sequence[int], known: Sequence[Vocabulary]) -> TokenPlan:
    """Number the tokens of all experts, and find each expert's row for each row of the blend."""
    # some tokenizers list tokens that have no row; the expert does not have these
    rows = [{t: n for t, n in v.numbers.items() if n < size} for v, size in zip(known, sizes, strict=True)]
    tokens = dict.fromkeys(token for own in rows for token in sorted(own, key=own.__getitem__))
    keeper = next((k for k, own in enumerate(rows) if tokens.keys() <= own.keys()), 0)
    numbers = dict(known[keeper].numbers)
    lacking = [token for token in tokens if token not in numbers]
    numbers |= {token: number for number, token in enumerate(lacking, max(numbers.values()) + 1)}
    owners = {token: next(v for v, own in zip(known, rows, strict=True) if token in own) for token in lacking}
    new = tuple(read_added_token(owner.folder, token, numbers[token]) for token, owner in owners.items())
    n_rows = max(*sizes, *(numbers[token] + 1 for token in tokens))
    odd = _odd_rows({numbers[token]: token for token in tokens}, n_rows, rows, sizes)
    vocabulary = Vocabulary(known[keeper].folder, known[keeper].tables, numbers)
    return TokenPlan(names, n_rows, odd, keeper, new, vocabulary)


def _odd_rows(
    tokens: Mapping[int, str], n_rows: int, experts: Sequence[Numbers], sizes: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """Return the experts' rows [K] for each row of the blend that has another number in some expert."""
    taken = [set(own.values()) for own in experts]
    odd = {}
    for row in range(n_rows):
        own_rows = tuple(_row_of(row, tokens.get(row), *each) for each in zip(experts, taken, sizes, strict=True))
        if max(own_rows) < 0:  # padding, unless an expert that has the row uses it for a token
            own_rows = tuple(row if row < size else -1 for size in sizes)
        if any(own != row for own in own_rows):
            odd[row] = own_rows
    return odd


def _row_of(row: int, token: str | None, own: Numbers, taken: set[int], size: int) -> int:
    """Return an expert's row for a row of the blend; -1 if it has none. Rows without a token are padding and stay."""
    if token is not None:
        return own.get(token, -1)
    return row if row < size and row not in taken else -1
