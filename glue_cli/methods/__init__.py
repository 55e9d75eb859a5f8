"""The ways of choosing alpha: one file each, and this registry. Needs no torch until a method is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from glue_cli.spec.goal import Goal
    from glue_cli.spec.schema import MixSpec


@dataclass(frozen=True)
class Method:
    """Where a method is, what it chooses alpha from, and how many float32 blends it holds while it searches."""

    location: str
    needs: Literal["count", "sizes", "accuracies", "objective"]
    n_blends: int = 0

    @property
    def is_search(self) -> bool:
        return self.needs == "objective"

    @property
    def needs_data(self) -> bool:
        return self.needs in ("accuracies", "objective")

    def load(self) -> Callable[..., Any]:
        """Return the method's function."""
        module, _, function = self.location.partition(":")
        return getattr(import_module(f"glue_cli.methods.{module}"), function)  # type: ignore[no-any-return]


METHODS = {
    "uniform": Method("uniform:uniform", needs="count"),
    "data-size": Method("data_size:data_size", needs="sizes"),
    "proxy": Method("proxy:proxy", needs="accuracies"),
    "fullgrad": Method("fullgrad:fullgrad", needs="objective", n_blends=3),
    "spsa": Method("spsa:spsa", needs="objective", n_blends=2),
    "cmaes": Method("cmaes:cmaes", needs="objective", n_blends=2),
    "greedy": Method("greedy:greedy", needs="objective", n_blends=1),
}
SEARCHES = [name for name, method in METHODS.items() if method.is_search]


Steps = Literal["gauss-newton", "surrogate-first", "probes"]


def kind_of_steps(settings: "MixSpec", *, is_smooth: bool, follows_loss: bool) -> Steps:
    """Return which steps spsa takes: Gauss-Newton's get more out of the same forwards, but need a smooth objective.

    Args:
        is_smooth: whether the objective is the loss.
        follows_loss: whether the objective is a score whose optimum lies close to that of the loss; the first half
            of the search then minimises the loss instead.
    """
    if settings.search == "plain" or settings.optimizer != "auto":
        return "probes"
    if is_smooth:
        return "gauss-newton"
    return "surrogate-first" if follows_loss else "probes"


def makes_gauss_newton_steps(method: str, settings: "MixSpec", goal: "Goal") -> bool:
    """Tell whether all steps of a search are Gauss-Newton's, so that settings for probes have no effect."""
    if method != "spsa":
        return False
    return kind_of_steps(settings, is_smooth=goal.is_smooth, follows_loss=goal.follows_loss) == "gauss-newton"
