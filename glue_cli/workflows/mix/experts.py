"""The experts of a plan, whole models or adapters."""

from glue_cli.checkpoints.destination import Destination
from glue_cli.plans.mix import MixPlan
from glue_cli.plans.mix_records import NO_EXTRAS, Adapters
from glue_cli.results.card import About
from glue_cli.workflows.mix.adapter_experts import AdapterExperts
from glue_cli.workflows.mix.experts_interface import Experts
from glue_cli.workflows.mix.whole_experts import WholeExperts


def adapter_alone(adapters: Adapters) -> Experts:
    """Return a single adapter as the only expert of a blend, to be run and not written."""
    path = adapters.adapters[0].path
    return AdapterExperts(adapters, Destination(path, (), ()), About(None, "adapter"), search=NO_EXTRAS)


def gather_experts(plan: MixPlan) -> Experts:
    """Return the experts of a plan."""
    if plan.adapters:
        return AdapterExperts(plan.adapters, plan.destination, plan.about, search=plan.search)
    return WholeExperts(
        plan.experts,
        plan.tensors,
        plan.destination,
        plan.writing,
        plan.about,
        search=plan.search,
        seed=plan.seed,
    )
