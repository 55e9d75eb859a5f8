"""What a plan of `glue mix` is made of: small records, each for the part of the work that needs it."""

from dataclasses import dataclass
from typing import Literal

from glue_cli.blend.adapters.adapted_base import AdaptedBase
from glue_cli.blend.adapters.adapter import Adapter
from glue_cli.blend.blocks import MEMORY_BYTES
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.blend.rules import HeadPlan
from glue_cli.blend.tokens import TokenPlan
from glue_cli.checkpoints.configuration import NO_CHANGES, Changes
from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.methods import METHODS
from glue_cli.search.bank.kinds import KINDS

GIVEN = "alpha"  # the "method" of a blend whose coefficients were given
OUTPUT_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
BANKS = ("auto", *KINDS)


@dataclass(frozen=True)
class Coefficients:
    """Where alpha comes from.

    Attributes:
        method: a name of `METHODS`, or `GIVEN`.
        alpha: the given coefficients [K]; None where a method chooses them.
        sizes: the experts' numbers of training examples [K]; None where no method asks for them.
    """

    method: str
    alpha: tuple[float, ...] | None = None
    sizes: tuple[int, ...] | None = None

    @property
    def is_search(self) -> bool:
        """Whether a search over alpha runs the model."""
        return self.method in METHODS and METHODS[self.method].is_search

    @property
    def needs_data(self) -> bool:
        """Whether alpha depends on the target's data."""
        return self.method in METHODS and METHODS[self.method].needs_data

    @property
    def lacks_sizes(self) -> bool:
        """Whether the experts themselves have to say how many examples they were trained on."""
        return self.sizes is None and self.method in METHODS and METHODS[self.method].needs == "sizes"


@dataclass(frozen=True)
class Search:
    """What a search is asked for beyond the spec.

    Attributes:
        bank: where the experts are kept meanwhile, one of `BANKS`.
        explains: whether each expert's leave-one-out value is found afterwards.
    """

    bank: str = "auto"
    explains: bool = False


NO_EXTRAS = Search()


@dataclass(frozen=True)
class Writing:
    """How the blend is written.

    Attributes:
        dtype: a key of `OUTPUT_DTYPES`, for all of the blend; None where each tensor keeps its own.
        max_shard_bytes: the most bytes of tensors in a file; None puts all into one.
        memory_bytes: what the blend's buffers may take.
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
    """How the tensors of the blend come about.

    Attributes:
        recipe: the rule for each tensor.
        head: the head that is made anew; None where there is none.
        head_classes: the classes of a head that is not blended; none where it is, or nobody says them.
        classes: the names of all outputs of the blend; none where nobody says them.
        statistics: BatchNorm's: those blended, those taken anew from the target's data, or what does better there.
        tokens: how embeddings are aligned whose rows are other tokens in some expert; None where there are none.
        notes: sentences on the experts that the user is to see.
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
        adapters: one an expert.
        adapted: the adapters on their base; None where the base is not known.
        merges: whether the blend is merged into the base; else it is an adapter too.
        changes: what the merged model is otherwise than the base.
        notes: sentences on them that the user is to see.
    """

    adapters: tuple[Adapter, ...]
    adapted: AdaptedBase | None
    merges: bool
    changes: Changes = NO_CHANGES
    notes: tuple[str, ...] = ()
