"""Coefficients by the true gradient, configuration 3 of the paper's section 5: one forward and backward a step."""

from torch import Tensor

from glue_cli.foundation.state import SaveState, State, save_nothing
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned
from glue_cli.methods.staged.search import search
from glue_cli.methods.steps.descent import descend
from glue_cli.methods.steps.logit_descent import AveragedDescent, Estimate
from glue_cli.methods.steps.questions import Answer, Gradient
from glue_cli.methods.stepwise import Observe, unobserved
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec


def fullgrad(
    objective: Objective,
    settings: MixSpec,
    *,
    seed: int,
    observe: Observe = unobserved,
    save_state: SaveState = save_nothing,
    state: State | None = None,
) -> Learned:
    """Learn alpha by descent along the gradient through the blended network, eq. (9) left.

    The minibatches are the same as spsa's, and so are the starts, the race and the guard of a staged search. With a
    small budget, the seed decides which experts it tries to start towards.
    """
    domain = Simplex.of(objective)
    if settings.search == "plain":
        rule = TrueGradient(domain)
        return descend(objective, rule, settings, observe=observe, save_state=save_state, state=state)
    return search(
        objective,
        settings,
        lambda start: AveragedDescent(domain, start, TrueGradient(domain), settings),
        seed=seed,
        observe=observe,
        save_state=save_state,
        state=state,
    )


class TrueGradient:
    """Computes the gradient at the logits by one forward and one backward."""

    n_forwards = 3

    def __init__(self, domain: Simplex) -> None:
        self._domain = domain
        self._alpha: Tensor | None = None

    def ask(self, beta: Tensor, step: int, share: float) -> Gradient:
        self._alpha = self._domain.from_logits(beta)
        return Gradient(self._alpha)

    def tell(self, answer: Answer) -> Estimate:
        assert isinstance(answer, tuple) and self._alpha is not None
        loss, by_alpha = answer
        return Estimate(self._domain.gradient_by_logits(self._alpha, by_alpha), loss)
