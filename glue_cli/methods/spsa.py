"""GLUE: coefficients by two-point SPSA, configuration 4 of the paper's section 5, with forward passes alone."""

from torch import Tensor

from glue_cli.foundation.state import SaveState, State, save_nothing
from glue_cli.methods import kind_of_steps, only_expert
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned
from glue_cli.methods.staged.by_group import MakeGroups
from glue_cli.methods.staged.contenders import MakeStrategy
from glue_cli.methods.staged.most_forwards import most_forwards as of_staged_search
from glue_cli.methods.staged.search import search
from glue_cli.methods.steps import descent
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
    make_strategy, make_groups = _strategies(objective, settings, seed)
    return search(
        objective,
        settings,
        make_strategy,
        make_groups=make_groups,
        seed=seed,
        observe=observe,
        save_state=save_state,
        state=state,
    )


def most_forwards(objective: Objective, settings: MixSpec) -> int:
    """Return how many forwards `spsa` makes at most if the settings have no budget."""
    domain, seed = Simplex.of(objective), 0
    if domain.n_experts == 1:
        return only_expert.most_forwards(objective)
    rule = ProbePairs(domain, settings, seed)
    if settings.search == "plain":
        return descent.most_forwards(objective, rule, settings)
    make_strategy, make_groups = _strategies(objective, settings, seed)
    uniform = domain.uniform()
    strategy, groups = make_strategy(uniform), make_groups(uniform, uniform) if make_groups else None
    n_forwards = strategy.n_forwards
    if isinstance(strategy, SurrogateFirst):
        n_forwards = max(n_forwards, rule.n_forwards)  # in its second half
    return of_staged_search(objective, settings, strategy, n_forwards, groups)


def _strategies(objective: Objective, settings: MixSpec, seed: int) -> tuple[MakeStrategy, MakeGroups | None]:
    """Return what makes the strategies of a staged search: of all groups, and of each group where that comes later."""
    domain = Simplex.of(objective)
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

    return make_strategy, make_groups if kind == "gauss-newton" and domain.n_groups > 1 else None
