"""Run the model on the target's data as a mix would, for its losses and for what a step takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from glue_cli.foundation.progress import Event, Noted, Progress
from glue_cli.foundation.run import Run
from glue_cli.foundation.threads import restored_threads
from glue_cli.plans.mix import MixPlan
from glue_cli.results.check import PlannedMix, StepCosts
from glue_cli.running.device import find_device, make_repeatable
from glue_cli.search.criterion import criterion_of
from glue_cli.workflows.check.costs import measure_costs
from glue_cli.workflows.check.midpoints import Losses, measure_losses
from glue_cli.workflows.compute import blending_compute
from glue_cli.workflows.fits import check_blends_fit_data
from glue_cli.workflows.mix.experts import gather_experts
from glue_cli.workflows.mix.faithful import check_is_faithful
from glue_cli.workflows.mix.setting import Setting
from glue_cli.workflows.mix.target import target_of


@dataclass(frozen=True)
class Trial:
    """What a mix would meet.

    Attributes:
        bank: where the search would keep the experts, in a sentence.
        forwards: how many a search by the spec makes at most; None if its budget is in other units.
        budget_s: its budget in seconds, if it has one.
    """

    losses: Losses
    bank: str | None
    forwards: int | None
    budget_s: float | None
    step: StepCosts

    def planned(self, experts_bytes: int, free_bytes: int) -> PlannedMix:
        """Return it as a plan of a mix."""
        each_s = self.step.forward_s + self.step.blend_s
        return PlannedMix(
            experts_bytes=experts_bytes,
            free_bytes=free_bytes,
            bank=self.bank,
            forwards=self.forwards,
            seconds=self.forwards * each_s if self.forwards is not None else self.budget_s,
            step=self.step,
        )


@restored_threads()
def try_mix(plan: MixPlan, run: Run) -> Trial:
    """Measure losses and costs with the blends that a search would work on.

    Raises:
        CheckpointError, SpecError, DataError, ResourceError: as a mix.
    """
    assert plan.spec
    spec = plan.spec
    make_repeatable(find_device(run.device))
    experts, target = gather_experts(plan), target_of(plan, run)
    assert target
    notes: list[str] = []
    listening = replace(run, progress=_keeping_bank(notes, run.progress))
    blends = experts.blends(spec, listening, seed=plan.seed, n_blends=2)
    check_blends_fit_data(blends, target["train"], spec.loss, spec.data.where, run.progress)
    check_blends_fit_data(blends, target["val"], spec.loss, spec.data.where)
    if not plan.adapters:
        check_is_faithful(experts, spec, blends, target["train"])
    losses = measure_losses(plan, spec, target, experts, blends, run)
    compute, _ = blending_compute(spec, blends, target["train"], run)
    blends = blends.with_precision(compute.precision)
    step = measure_costs(spec, target, blends, plan.seed)
    criterion = criterion_of(spec.objective, spec.loss, spec.path("."))
    setting = Setting(plan, spec.mix, target, experts, blends, None, criterion, run)
    budget = spec.mix.parsed_budget
    budget_s = budget.limit if budget and budget.unit == "seconds" else None
    return Trial(losses, notes[0] if notes else None, setting.most_forwards(), budget_s, step)


_BANK = "bank: "  # begins the note with which a search says where it keeps the experts


def _keeping_bank(notes: list[str], progress: Progress) -> Callable[[Event], None]:
    """Return a listener that keeps what the note on the bank says in place of showing it, and passes on the rest."""

    def listen(event: Event) -> None:
        if isinstance(event, Noted) and event.text.startswith(_BANK) and not event.warning:
            notes.append(event.text.removeprefix(_BANK))
        else:
            progress(event)

    return listen
