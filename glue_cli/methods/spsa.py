"""GLUE: coefficients by two-point SPSA, configuration 4 of the paper's section 5, with forward passes alone."""

from torch import Tensor

from glue_cli.foundation.state import SaveState, State, save_nothing
from glue_cli.methods import kind_of_steps
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned
from glue_cli.methods.staged.search import search
from glue_cli.methods.steps.descent import descend
from glue_cli.methods.steps.gauss_newton import GaussNewton
from glue_cli.methods.steps.logit_descent import AveragedDescent
from glue_cli.methods.steps.spsa_steps import ProbePairs, SurrogateFirst
from glue_cli.methods.steps.strategy import Strategy
from glue_cli.methods.stepwise import Observe, unobserved
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec


def spsa(
    objective: Objective,
    settings: MixSpec,
    *,
    seed: int,
    observe: Observe = unobserved,
    save_state: SaveState = save_nothing,
    state: State | None = None,
) -> Learned:
    """Learn alpha with forward passes alone, eq. (9) right.

    A plain search is the paper's: n probe pairs per step, 2n forwards, from the uniform blend. A staged one takes the
    steps that `kind_of_steps` chooses; with Gauss-Newton's it learns one alpha for all groups first.
    """
    domain = Simplex.of(objective)
    if settings.search == "plain":
        rule = ProbePairs(domain, settings, seed)
        return descend(objective, rule, settings, observe=observe, save_state=save_state, state=state)
    kind = kind_of_steps(settings, is_smooth=objective.is_smooth, follows_loss=objective.follows_loss)

    def make_strategy(start: Tensor) -> Strategy:
        match kind:
            case "gauss-newton":
                return GaussNewton(domain, start, seed=seed, is_tied=domain.n_groups > 1)
            case "surrogate-first":
                return SurrogateFirst(domain, start, settings, seed)
            case "probes":
                return AveragedDescent(domain, start, ProbePairs(domain, settings, seed), settings)

    def make_groups(start: Tensor, anchor: Tensor) -> GaussNewton:
        return GaussNewton(domain, start, seed=seed, anchor=anchor)

    return search(
        objective,
        settings,
        make_strategy,
        make_groups=make_groups if kind == "gauss-newton" and domain.n_groups > 1 else None,
        seed=seed,
        observe=observe,
        save_state=save_state,
        state=state,
    )
