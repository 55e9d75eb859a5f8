"""CMA-ES, the usual search without a derivative, on the logits: with the package cmaes, from the extra `search`."""

import math
from typing import Any

import numpy as np
import torch
from cmaes import CMA
from torch import Tensor

from glue_cli.foundation.seeds import derive_seed
from glue_cli.foundation.state import SaveState, State, save_nothing
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned
from glue_cli.methods.staged.search import search
from glue_cli.methods.steps.questions import Answer, Probes
from glue_cli.methods.stepwise import Observe, unobserved
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec

_SIGMA = 0.3  # the best of 0.3, 0.5, 1 and 2 on the digits and CIFAR-10


def cmaes(
    objective: Objective,
    settings: MixSpec,
    *,
    seed: int,
    observe: Observe = unobserved,
    save_state: SaveState = save_nothing,
    state: State | None = None,
) -> Learned:
    """Learn alpha with forward passes alone; the objective need only return a number.

    The search is staged in both presets, as the paper has no CMA-ES.
    """
    domain = Simplex.of(objective)
    return search(
        objective,
        settings,
        lambda start: CmaEs(domain, start, seed),
        seed=seed,
        observe=observe,
        save_state=save_state,
        state=state,
    )


class CmaEs:
    """A strategy: each step is one generation, evaluated on the step's minibatch.

    A point whose loss is not finite counts as bad as the worst of the others; if that is so of all of them, the next
    generation is drawn half as wide.

    Args:
        start: [G, K], a point of the domain.
    Attributes:
        n_forwards: of a step, the size of the population; n_rounds: steps after which a poor basin can be told.
    """

    n_rounds = 3

    def __init__(self, domain: Simplex, start: Tensor, seed: int) -> None:
        logits = domain.logits_of(start)
        # All G K logits: the package needs at least two dimensions, and K - 1 is only one for two experts.
        self._optimizer = CMA(logits.flatten().numpy(), _SIGMA, seed=derive_seed(seed, "cmaes") % 2**32)
        self.n_forwards = self.least_forwards = self._optimizer.population_size
        self._domain, self._points = domain, np.empty(0)
        self._optimizer._funhist_values[:] = 0  # not initialised by the package, so that states would differ
        self._state = _state_of(self._optimizer)

    @property
    def has_converged(self) -> bool:
        """Whether the distribution is so narrow that the package would soon divide by rounding errors."""
        return bool(self._optimizer.should_stop())

    @property
    def alpha(self) -> Tensor:
        """The softmax of the distribution's mean, [G, K]."""
        return self._alphas_of(self._optimizer.mean)

    def ask(self, step: int, n_forwards: float) -> Probes:
        """Draw a new generation and ask for its losses. Two blends are held at a time."""
        self._points = np.stack([self._optimizer.ask() for _ in range(self.n_forwards)])
        return Probes(self._alphas_of(self._points), n_at_once=2)

    def tell(self, answer: Answer) -> float:
        """Move the distribution; return the mean of the generation's finite losses, NaN if there is none."""
        assert isinstance(answer, Tensor)
        finite = answer[answer.isfinite()]
        if len(finite):
            # No infinity: the package would subtract it from itself.
            losses = answer.where(answer.isfinite(), finite.max()).tolist()
            self._optimizer.tell(list(zip(self._points, losses, strict=True)))
        else:
            self._optimizer._sigma /= 2
        self._state = _state_of(self._optimizer)
        return finite.mean().item() if len(finite) else math.nan

    def state(self) -> State:
        return self._state

    def restore(self, state: State) -> None:
        _restore(self._optimizer, state)
        self._state = _state_of(self._optimizer)

    def _alphas_of(self, logits: Any) -> Tensor:
        return self._domain.from_logits(torch.from_numpy(logits).view(*logits.shape[:-1], *self._domain.shape))


_RANDOM = "_rng"  # numpy's generator, which the package leaves out of its pickles


def _state_of(optimizer: CMA) -> State:
    """Return a copy of all that the optimizer is made of: arrays as tensors, numbers, and its generator's state.

    Take it before the next generation is drawn, which changes the covariances' rounding.
    """
    state: State = {}
    for name, value in vars(optimizer).items():
        if name == _RANDOM:
            kind, keys, position, has_gauss, gauss = value.get_state()
            assert kind == "MT19937"
            state |= {"random": torch.from_numpy(keys.astype(np.int64)), "random_position": position}
            state |= {"random_has_gauss": has_gauss, "random_gauss": gauss}
        else:
            state[name] = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else _plain(name, value)
    return state


def _restore(optimizer: CMA, state: State) -> None:
    for name in vars(optimizer).keys() - {_RANDOM}:
        value = state[name]
        setattr(optimizer, name, value.numpy().copy() if isinstance(value, Tensor) else value)
    keys = state["random"].numpy().astype(np.uint32)
    gauss = state["random_has_gauss"], state["random_gauss"]
    optimizer._rng.set_state(("MT19937", keys, state["random_position"], *gauss))


def _plain(name: str, value: object) -> float | int | None:
    """Return a number as Python's own; None stays."""
    if isinstance(value, np.generic):
        value = value.item()
    assert value is None or isinstance(value, bool | int | float), f"cmaes keeps in '{name}' what no state can hold"
    return value
