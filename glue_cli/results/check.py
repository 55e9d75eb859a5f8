"""`glue.check/1`: what `glue check` finds of experts before they are mixed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from glue_cli.results.record import where_known

Verdict = Literal["mix", "refresh", "no"]


@dataclass(frozen=True, kw_only=True)
class NonFiniteTensor:
    """How many NaN and infinities a tensor has."""

    tensor: str
    nan: int
    infinite: int


@dataclass(frozen=True, kw_only=True)
class CheckedExpert:
    """One expert.

    Attributes:
        bytes: of its files; parameters: its floating-point numbers.
        non_finite: its tensors with NaN or infinity.
        distance: to the experts' mean, relative to the root mean square of the experts' norms; None if unknown.
        weights: the name of the chosen set of weights if the file has several.
    """

    path: str
    sha256: str
    bytes: int
    parameters: int
    non_finite: Sequence[NonFiniteTensor]
    distance: float | None = None
    weights: str | None = where_known()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something in which the experts differ, so that they cannot be mixed; as in `glue_cli.blend.misfit.Misfit`."""

    about: str
    message: str
    items: Sequence[str] = ()
    hint: str | None = None


@dataclass(frozen=True, kw_only=True)
class CheckedPair:
    """Two experts.

    Attributes:
        experts: their numbers, from 0.
        distance: between them, relative to the root mean square of all experts' norms.
        cosine: between their weights.
        difference_cosine: between their differences to the experts' mean.
        midpoint: the loss halfway between them, with the mean of their BatchNorm statistics; None if not measured.
        midpoint_refreshed: the same with statistics taken anew on the target's data; None without BatchNorm.
    """

    experts: tuple[int, int]
    distance: float | None
    cosine: float | None
    difference_cosine: float | None
    midpoint: float | None = where_known()
    midpoint_refreshed: float | None = where_known()


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What a step of a search consists of, timed on one minibatch.

    Attributes:
        forward_s, backward_s: F and B, a forward and a backward; blend_s: C_mix, making one blend.
        inner_products_s: C_inner, the inner products of the gradient with every expert. None, and B too, where no
            gradient passes the model: a library has quantised it, or it is made block by block.
        cheaper: which step is: `spsa` with two probes if F + C_mix < B + C_inner, eq. (10), else `fullgrad`.
        spread_s: how far apart the quartiles of the two sides' difference are; it tells nothing where it is less.
    """

    batch_size: int
    forward_s: float
    backward_s: float | None
    blend_s: float
    inner_products_s: float | None
    cheaper: Literal["spsa", "fullgrad"]
    spread_s: float | None = where_known()


@dataclass(frozen=True, kw_only=True)
class PlannedMix:
    """What a mix by a search would take here.

    Attributes:
        experts_bytes: of all experts in memory; free_bytes: what is free in host memory now.
        bank: where the search would keep the experts, in a sentence.
        forwards: at most, of all stages and for the file; seconds: those and a blend for each, at the measured
            speed, or a budget in seconds.
    """

    experts_bytes: int
    free_bytes: int
    bank: str | None = where_known()
    forwards: int | None = where_known()
    seconds: float | None = where_known()
    step: StepCosts | None = where_known()


@dataclass(frozen=True, kw_only=True)
class CheckedLosses:
    """Losses on some of the target's examples; those between experts are in the pairs.

    Attributes:
        experts: of each expert as it is; experts_refreshed: with BatchNorm's statistics taken anew; None without any.
        guessing: of predicting how often each class occurs, or the mean of the targets; None for tokens.
        examples: how many there are, those for validation first, then some for training.
    """

    experts: Sequence[float]
    examples: int
    experts_refreshed: Sequence[float] | None = where_known()
    guessing: float | None = where_known()


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """`glue.check/1`.

    Attributes:
        verdict: `mix`: the experts can be mixed as they are; `refresh`: they can if BatchNorm's statistics are taken
            anew on the target's data; `no`: they cannot, or their mixes are of no use.
        reasons: why, in sentences; instead: what to do, in sentences.
        differences: why they cannot be mixed at all; empty if they can.
        notes: differences that do no harm, in sentences.
        unlike: tensors that are not related between two experts.
        permuted: whether hidden units of one expert are found in another one, in another order.
        losses: None if there is no spec, or the experts cannot be mixed.
    """

    schema: str = field(default="glue.check/1", init=False)
    verdict: Verdict
    reasons: Sequence[str]
    instead: Sequence[str]
    experts: Sequence[CheckedExpert]
    differences: Sequence[Difference]
    notes: Sequence[str]
    pairs: Sequence[CheckedPair]
    unlike: Sequence[str]
    permuted: bool
    mix: PlannedMix
    losses: CheckedLosses | None = where_known()
