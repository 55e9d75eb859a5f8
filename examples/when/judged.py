"""Two things that no `glue` command makes: the experts' ensemble, and experts that went in random directions."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.data.target import Target
from glue_cli.foundation.run import Run
from glue_cli.foundation.seeds import generator
from glue_cli.models.weights import initial_model, load_model
from glue_cli.running.device import Compute, likes_channels_last
from glue_cli.running.forward import outputs_of
from glue_cli.spec.schema import Spec


@torch.no_grad()
def ensemble_figures(spec: Spec, experts: Sequence[Path]) -> dict[str, float]:
    """Return loss and accuracy on the test split of the mean of the experts' probabilities."""
    examples = Target(spec, Run())["test"]
    total = torch.zeros(())  # becomes the sum of probabilities, [N, n_classes]
    for path in experts:
        model = load_model(spec, read_checkpoint(path))
        compute = Compute(torch.device("cpu"), "fp32", likes_channels_last(model))
        model = compute.to_device(model).eval()
        batches = list(examples.on(compute).in_order())
        total = total + torch.cat([outputs_of(model, inputs).softmax(1) for inputs, _ in batches])
        labels = torch.cat([targets for _, targets in batches])
    mean = total / len(experts)
    accuracy = (mean.argmax(1) == labels).float().mean()
    return {"loss": F.nll_loss(mean.log(), labels).item(), "accuracy": accuracy.item()}


def write_random_experts(spec: Spec, experts: Sequence[Path], folder: Path) -> list[Path]:
    """Write, for each expert, one that went as far from the start, tensor by tensor, but in a random direction.

    BatchNorm's statistics stay those of the expert, since random ones could be no variances.

    Args:
        spec: says the start of the experts, and the seed of the directions.
    """
    class_names = Target(spec, Run())["train"].class_names
    start = dict(initial_model(spec, class_names=class_names).named_parameters())
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, expert in enumerate(experts):
        draws = generator(spec.seed, "random experts", k)
        tensors = load_model(spec, read_checkpoint(expert)).state_dict()
        for name, from_where in start.items():
            direction = torch.randn(from_where.shape, generator=draws)
            length = (tensors[name] - from_where.detach()).norm()
            tensors[name] = from_where.detach() + direction * (length / direction.norm())
        paths.append(folder / f"expert-{k:03d}.safetensors")
        write_checkpoint(paths[-1], tensors, {"class_names": list(class_names or ())})
    return paths
