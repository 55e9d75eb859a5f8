"""The search that is judged: what `glue mix --method spsa` does by default."""

from torch import Tensor

from glue_cli.methods.spsa import spsa
from glue_cli.search.objective import BlendObjective
from glue_cli.spec.schema import MixSpec


def default_spsa(objective: BlendObjective, budget: int, seed: int) -> Tensor:
    """Return alpha [K] for at most `budget` forwards on a batch of 64, screening and validation included."""
    settings = MixSpec.model_validate({"preset": "default", "budget": str(budget)})
    return spsa(objective, settings, seed=seed).alpha[0]
