"""The parts of a plan of `glue mix`: small records, each for one step of the work."""

from dataclasses import dataclass
from typing import Literal

from glue_cli.blend.adapters.adapted_base import AdaptedBase
from glue_cli.blend.adapters.adapter import Adapter
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.blend.rules import HeadPlan
from glue_cli.blend.tokens import TokenPlan
from glue_cli.checkpoints.configuration import NO_CHANGES, Changes
from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.memory import MEMORY_BYTES
from glue_cli.methods import METHODS
from glue_cli.search.bank.kinds import KINDS

GIVEN = "alpha"  # the "method" of a blend with given coefficients
OUTPUT_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
BANKS = ("auto", *KINDS)
ADAPTER_BANKS = ("auto", "factors", "dense")  # adapters: by their factors, or as whole updated tensors
ALL_BANKS = tuple(dict.fromkeys((*BANKS, *ADAPTER_BANKS)))


@dataclass(frozen=True)
class Coefficients:
    """Where alpha comes from.

    Attributes:
        method: a name in `METHODS`, or `GIVEN`.
        alpha: the given coefficients [K]; None if a method chooses them.
        sizes: the experts' numbers of training examples [K]; None if the method does not need them.
    """

    method: str
    alpha: tuple[float, ...] | None = None
    sizes: tuple[int, ...] | None = None

    @property
    def is_search(self) -> bool:
        """Whether alpha is chosen by a search that runs the model."""
        return self.method in METHODS and METHODS[self.method].is_search

    @property
    def needs_data(self) -> bool:
        """Whether alpha depends on the target's data."""
        return self.method in METHODS and METHODS[self.method].needs_data

    @property
    def lacks_sizes(self) -> bool:
        """Whether the numbers of training examples have to be read from the experts themselves."""
        return self.sizes is None and self.method in METHODS and METHODS[self.method].needs == "sizes"


@dataclass(frozen=True)
class Search:
    """What a search is asked to do besides what the spec says.

    Attributes:
        bank: how the experts are kept during the search, one of `BANKS`, or for adapters of `ADAPTER_BANKS`.
        explains: whether each expert's leave-one-out value is measured afterwards.
        memory_bytes: what the experts and their blends may take in memory; None for what is free.
    """

    bank: str = "auto"
    explains: bool = False
    memory_bytes: int | None = None


NO_EXTRAS = Search()


@dataclass(frozen=True)
class Writing:
    """How the blend is written.

    Attributes:
        dtype: a key of `OUTPUT_DTYPES`, for the whole blend; None if each tensor keeps its own.
        max_shard_bytes: the most bytes of tensors in one file; None puts all into a single file.
        memory_bytes: the memory that the buffers may take while the blend is written.
        hashing: whether the experts' sha256 are taken.
        card: whether a folder gets a model card.
    """

    dtype: str | None = None
    max_shard_bytes: int | None = None
    memory_bytes: int = MEMORY_BYTES
    hashing: bool = True
    card: bool = True


AS_IT_COMES = Writing()


@dataclass(frozen=True)
class Tensors:
    """How the tensors of the blend are made.

    Attributes:
        recipe: the rule for each tensor.
        head: the head that is made anew; None if there is none.
        head_classes: the classes of a head that is not blended; empty if it is blended, or they are not known.
        classes: the names of all outputs of the blend; empty if they are not known.
        statistics: of BatchNorm: blended, taken anew on the target's data, or whichever does better on them.
        tokens: how to align embeddings if the experts' rows stand for different tokens; None if they do not.
        notes: sentences about the experts to show the user.
    """

    recipe: Recipe = PLAIN
    head: HeadPlan | None = None
    head_classes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    statistics: Statistics | Literal["auto"] = "averaged"
    tokens: TokenPlan | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adapters:
    """The experts as adapters.

    Attributes:
        adapters: one for each expert.
        adapted: the adapters on their base; None if the base is not known.
        merges: whether the blend is merged into the base; if not, it is an adapter too.
        changes: how the merged model differs from the base.
        notes: sentences about them to show the user.
    """

    adapters: tuple[Adapter, ...]
    adapted: AdaptedBase | None
    merges: bool
    changes: Changes = NO_CHANGES
    notes: tuple[str, ...] = ()
