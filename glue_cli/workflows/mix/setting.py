"""What a search works on: the function that it minimises, and the blend as it would be written."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from glue_cli.checkpoints.header import FLOAT_DTYPES
from glue_cli.checkpoints.tensors import TORCH_DTYPES
from glue_cli.data.target import Target
from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.methods import makes_gauss_newton_steps, spsa
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned, if_finite
from glue_cli.methods.skips import not_finite
from glue_cli.plans.mix import MixPlan
from glue_cli.plans.mix_records import OUTPUT_DTYPES
from glue_cli.results.blend import Sample
from glue_cli.running.batchnorm import has_batchnorm
from glue_cli.running.means import ExampleSums
from glue_cli.search.criterion import Criterion
from glue_cli.search.held_out import HeldOut, Judge
from glue_cli.search.leading import Answers, LedObjective, answers_of, dismiss, follow, tell
from glue_cli.search.objective import BlendObjective
from glue_cli.search.protocol import Blends, WrittenBlend
from glue_cli.search.reach import Reach
from glue_cli.search.sharing import Sharing
from glue_cli.spec.schema import MixSpec
from glue_cli.workflows.mix.experts_interface import Experts
from glue_cli.workflows.mix.labels import Labels, share_out

_MOST_KEPT = 0.2  # share of the budget that measuring the written blend may take
# The smallest minibatch whose statistics may stand for those of a refreshed blend. Held out by folds, 10 spoken or
# handwritten digits show which statistics are better in 94 of 100 draws, and 25 digits in all 100.
_FEWEST_REFRESHING = 8


@dataclass(frozen=True)
class BlendAsWritten:
    """The blend that a search chose, as it will be written.

    Attributes:
        val, val_uniform: the mean terms on the validation data, of the written blend and of the uniform blend.
        made: the statistics of BatchNorm to write with it; None where they are the blended ones.
    """

    val: float | None
    val_uniform: float | None
    made: dict[str, Tensor] | None


class Setting:
    """The objective of a search, and its blend as it would be written.

    A plain search, as in the paper, judges blends as they are in memory; a staged search as they would be written.

    Args:
        blends: of the experts.
        reach: how far they are moved in bfloat16; None in float32.
    Attributes:
        goal: of the search; compute: what the forwards run with; blends: what yields the outputs.
        settings: of the search itself; its budget is reduced by what the steps after the search need.
    """

    def __init__(
        self,
        plan: MixPlan,
        settings: MixSpec,
        target: Target,
        experts: Experts,
        blends: Blends,
        reach: Reach | None,
        criterion: Criterion,
        run: Run,
    ) -> None:
        self.goal, self.compute, self.blends = criterion.goal, blends.compute, blends
        is_staged = settings.search == "staged"
        may_fold = is_staged and makes_gauss_newton_steps(plan.method, settings, self.goal)
        self._labels = share_out(target, self.goal, settings, blends.compute, seed=plan.seed, may_fold=may_fold)
        kinds = _kinds(plan, settings, blends, self._labels, run) if is_staged else ("averaged",)
        is_by_batch = not is_staged and settings.bn_statistics == "batch"
        if kinds == ("refreshed",) and _has_enough(settings, self._labels):
            blends, is_by_batch = blends.with_statistics("refreshed"), True
        self._ranks = run.ranks
        self._judge = Judge(as_written(plan, experts, blends), criterion, run.ranks) if is_staged else None
        self._own = BlendObjective(
            blends,
            criterion,
            self._labels.minibatches,
            seed=plan.seed,
            reach=reach,
            held_out=HeldOut(self._judge, self._labels.parts) if self._judge else None,
            kinds=kinds,
            sharing=Sharing(run.ranks, is_cut=not is_by_batch),
        )
        self.objective = LedObjective(self._own, run.ranks, kinds[0])
        self._n_kept = self._kept_for_the_file(settings) if is_staged else 0
        self.settings = _with_less(settings, self._n_kept)

    @property
    def sample(self) -> Sample:
        """Which examples BatchNorm's statistics are taken from."""
        return self._labels.sample

    def most_forwards(self) -> int | None:
        """Return how many forwards a search by spsa makes here at most, with those after it for the file's sake.

        None if the budget is not in forwards.
        """
        refreshing = self._labels.refreshing.n if self._judge and "refreshed" in self.objective.kinds else 0
        if budget := self.settings.parsed_budget:
            return int(budget.limit) + (self._n_kept or refreshing) if budget.unit == "forwards" else None
        after = 0
        if self._judge:
            by_uniform = refreshing if self.objective.kinds[0] == "refreshed" else 0
            is_measured = self.objective.n_folds > 1
            after = refreshing + (2 * self._labels.validation.n + by_uniform if is_measured else 0)
        return spsa.most_forwards(self.objective, self.settings) + after

    def follow(self, keep: Callable[..., None]) -> None:
        """Help the process that searches until it needs no more help.

        Args:
            keep: `Keeper.keep`.
        Raises:
            Stopped: the job was asked to stop, and its state is saved.
        """
        others: Answers = {"load": self._load, "measure": self._measure, "keep": keep}
        follow(self._ranks, {**answers_of(self._own), **others})

    def dismiss(self) -> None:
        """Let the processes go that follow this one."""
        if self._ranks.size > 1:
            dismiss(self._ranks)

    def as_written(self, learned: Learned) -> BlendAsWritten:
        """Return the chosen blend as it will be written, with its loss.

        The loss is measured here, unless the guard has measured it or a small budget has no room for that.

        Raises:
            NumericalError: its loss is not finite.
        """
        has_searched = learned.val_loss is not None or learned.stopped == "budget"
        if self._judge is None or not has_searched:
            return BlendAsWritten(learned.val_loss, learned.val_loss_start, None)
        self._load(learned.alpha, learned.statistics)
        made = self._judge.blend.statistics() if learned.statistics == "refreshed" else None
        is_limited = self.settings.parsed_budget is not None
        if learned.is_as_written or (is_limited and not self._n_kept):
            return BlendAsWritten(learned.val_loss, learned.val_loss_start, made)
        val, val_uniform = self._measure(), None  # the guard's own may be of other examples
        if val is None:
            raise not_finite("the validation loss of the blend as written", learned.n_steps, learned.alpha)
        if not is_limited:
            self._load(Simplex.of(self.objective).uniform(), self.objective.kinds[0])
            val_uniform = self._measure()
        return BlendAsWritten(val, val_uniform, made)

    def _kept_for_the_file(self, settings: MixSpec) -> int:
        """Return how many forwards of the budget to reserve for measuring the written blend; 0 if that is too many."""
        budget = settings.parsed_budget
        if budget is None:
            return 0
        n_forwards = self._labels.validation.n
        if "refreshed" in self.objective.kinds:
            n_forwards += self._labels.refreshing.n
        limit = {"forwards": budget.limit, "examples": budget.limit / settings.batch_size, "seconds": math.inf}
        return n_forwards if n_forwards <= _MOST_KEPT * limit[budget.unit] else 0

    def _load(self, alpha: Tensor, statistics: Statistics) -> None:
        assert self._judge
        if self._ranks.is_first:
            tell(self._ranks, "load", alpha, statistics)
        refreshing = self._labels.refreshing if statistics == "refreshed" else None
        self._judge.load(alpha, refreshing, self._own.cost.charge)

    def _measure(self) -> float | None:
        """Return the mean of the terms of the blend that is loaded; None if it is not finite."""
        assert self._judge
        if self._ranks.is_first:
            tell(self._ranks, "measure")
        before = self.objective.cost.forwards
        terms = ExampleSums.join(self._judge.terms(self._labels.validation, self._own.cost.charge)).shares
        self.objective.cost.validation_forwards += self.objective.cost.forwards - before
        return if_finite(terms.mean().item())


def _with_less(settings: MixSpec, n_forwards: int) -> MixSpec:
    """Return the settings with the budget reduced by `n_forwards`; a budget in seconds is not changed."""
    budget = settings.parsed_budget
    if budget is None or budget.unit == "seconds" or not n_forwards:
        return settings
    in_examples = budget.unit == "examples"
    less = budget.limit - n_forwards * (settings.batch_size if in_examples else 1)
    return settings.model_copy(update={"budget": f"{less:.0f}ex" if in_examples else f"{less:.0f}"})


def _kinds(plan: MixPlan, settings: MixSpec, blends: Blends, labels: Labels, run: Run) -> tuple[Statistics, ...]:
    """Return the kinds of BatchNorm's statistics that the blend may be written with."""
    wanted = plan.tensors.statistics
    if wanted == "averaged" or not has_batchnorm(blends.model):
        return ("averaged",)
    if wanted == "refreshed":
        return ("refreshed",)
    if _has_enough(settings, labels):
        return "averaged", "refreshed"
    text = f"minibatches of fewer than {_FEWEST_REFRESHING} examples: BatchNorm's statistics stay the experts' own"
    run.progress(Noted(text))
    return ("averaged",)


def _has_enough(settings: MixSpec, labels: Labels) -> bool:
    return min(settings.batch_size, labels.minibatches.n_examples) >= _FEWEST_REFRESHING


def as_written(plan: MixPlan, experts: Experts, blends: Blends) -> WrittenBlend:
    """Return a blend in memory as its file will be."""
    wanted = plan.writing.dtype
    dtypes = {
        name: TORCH_DTYPES[OUTPUT_DTYPES[wanted] if wanted else dtype]
        for name, dtype in experts.dtypes().items()
        if dtype in FLOAT_DTYPES
    }
    if plan.adapters and not plan.adapters.merges:
        dtypes = {}  # only the factors are written, none of the model's tensors
    return blends.as_written(dtypes)
