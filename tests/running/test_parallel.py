import pytest
import torch
from torch import nn

from glue_cli.foundation.ranks import Place, Ranks
from glue_cli.running.losses import IGNORED, example_losses
from glue_cli.running.parallel import part_of, spread


@pytest.mark.parametrize("n", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("kind", ["labels", "tokens"])
def test_the_mean_over_the_parts_is_the_batchs(n, size, kind):
    draws = torch.Generator().manual_seed(n)
    shape = (n,) if kind == "labels" else (n, 3)
    outputs, targets = torch.randn(*shape, 4, generator=draws), torch.randint(0, 4, shape, generator=draws)
    if kind == "tokens":
        targets[0, 1:] = IGNORED
    wanted = example_losses("cross_entropy", outputs, targets).mean()
    found = torch.zeros(())
    for rank in range(size):
        part = part_of(({"logits": outputs}, targets), Ranks(Place(rank, size)))
        inputs, own = part.batch
        found += part.weight * example_losses("cross_entropy", inputs["logits"], own).sum() / size
        assert len(own) == len(inputs["logits"]) >= 1
    torch.testing.assert_close(found, wanted)


def test_alone_the_model_makes_the_passes_itself():
    model = nn.Linear(2, 2)
    assert spread(model, Ranks()) is model
