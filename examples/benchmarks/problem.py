"""What a search is given, the loss of a blend on minibatches, and what it is judged by, that on unseen examples."""

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.data.loader import Examples
from glue_cli.data.target import Target
from glue_cli.foundation.run import Run
from glue_cli.foundation.seeds import generator
from glue_cli.models.weights import load_model
from glue_cli.running.device import Compute, likes_channels_last
from glue_cli.running.forward import outputs_of
from glue_cli.running.losses import example_losses
from glue_cli.search.bank.load import load_bank
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.criterion import criterion_of
from glue_cli.search.objective import BlendObjective, Minibatches
from glue_cli.spec.schema import Spec
from glue_cli.workflows.evaluation import evaluate_model

BATCH = 64
MOST_HELD_OUT = 4000  # examples; a fixed draw of more


class Problem:
    """K experts and their target, in float32 on the CPU.

    Args:
        split: the target's split that blends are judged by.
    """

    def __init__(self, spec: Spec, experts: Sequence[Path], split: str) -> None:
        checkpoints = [read_checkpoint(path) for path in experts]
        model = load_model(spec, checkpoints[0])
        self._compute = Compute(torch.device("cpu"), "fp32", likes_channels_last(model))
        self._model = self._compute.to_device(model).eval()
        self._blended = copy.deepcopy(self._model)
        self._bank = load_bank(checkpoints, device=self._compute.device, channels_last=self._compute.channels_last)
        target = Target(spec, Run())
        self._train, self._val = (target[name].on(self._compute) for name in ("train", "val"))
        self._held_out = _draw(target[split]).on(self._compute)
        self._loss = spec.loss
        self.n_experts = len(experts)

    def objective(self, seed: int) -> BlendObjective:
        """Return the objective of a search with its minibatches, the same for every method; nothing is spent yet."""
        return BlendObjective(
            ResidentBlends(self._model, self._bank, self._compute, seed=seed),
            criterion_of("loss", self._loss, Path(".")),
            Minibatches(
                at_step=lambda step: self._train.at_step(step, BATCH, seed),
                validation=lambda: self._val.in_random_order(BATCH, seed),
                n_validation=self._val.n_in_random_order(BATCH),
            ),
            seed=seed,
        )

    @cached_property
    def expert_figures(self) -> list[dict[str, float]]:
        """Each expert's loss and accuracy on the whole validation data, [K]."""
        figures = []
        for one_hot in torch.eye(self.n_experts, dtype=torch.float64):
            self._blend(one_hot)
            figures.append(evaluate_model(self._blended, self._val, loss=self._loss, compute=self._compute))
        return figures

    @property
    def expert_forwards(self) -> int:
        """What the experts' figures cost, in forwards on a batch of 64."""
        return self.n_experts * sum(1 for _ in self._val.in_order(BATCH))

    @torch.no_grad()
    def held_out_losses(self, alpha: Tensor) -> Tensor:
        """Return the loss of each held-out example under the blend, float32 [n].

        Args:
            alpha: [K], on the simplex.
        """
        self._blend(alpha)
        losses = [
            example_losses(self._loss, outputs_of(self._blended, inputs), targets)
            for inputs, targets in self._held_out.in_order()
        ]
        return torch.cat(losses)

    def _blend(self, alpha: Tensor) -> None:
        theta = torch.empty(1, self._bank.n_columns)
        self._bank.blend(alpha.view(1, 1, -1), theta)
        tensors = {name: span.view(theta[0]) for name, span in self._bank.spans.items()}
        self._blended.load_state_dict(tensors, strict=False)


def _draw(examples: Examples) -> Examples:
    if len(examples) <= MOST_HELD_OUT:
        return examples
    order = torch.randperm(len(examples), generator=generator(0, "held-out"))
    return examples.subset(order[:MOST_HELD_OUT].sort().values)
