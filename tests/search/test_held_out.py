import copy

import pytest
import torch
from small_experts import of_loss
from small_nets import ALPHA, ALPHAS, BOTH, batch_of, blended, conv_net, make_experts

from glue_cli.blend.recipe import PLAIN
from glue_cli.foundation.ranks import Ranks
from glue_cli.running.batchnorm import statistics_of
from glue_cli.running.losses import example_losses
from glue_cli.running.refreshing import refresh_from_few
from glue_cli.search.bank.load import bank_of_tensors
from glue_cli.search.blend_rows import BlendRows
from glue_cli.search.held_out import FixedBatches, HeldOut, Judge, Part
from glue_cli.search.written import WrittenInMemory

REFRESHING = [batch_of(7), batch_of(8)]


@pytest.fixture
def made():
    """Return a net with BatchNorm, three experts and a bank of them."""
    torch.manual_seed(0)
    model, experts = make_experts(conv_net)
    bank = bank_of_tensors((expert.items() for expert in experts), n_experts=3, device=torch.device("cpu"))
    return model.eval(), experts, bank


def written_of(made, dtype=None):
    model, experts, bank = made
    dtypes = dict.fromkeys(experts[0], dtype) if dtype else {}
    return WrittenInMemory(BlendRows(model, bank, ()), bank, dtypes=dtypes)


def held_out_of(made, parts, dtype=None):
    return HeldOut(Judge(written_of(made, dtype), of_loss("cross_entropy")), parts)


def by_hand(made, alpha, *, dtype=torch.float32, refreshing=None):
    """Return the model of a blend, as any tool would load it from the file."""
    model, experts, _ = made
    model = copy.deepcopy(model)
    tensors = {name: tensor.to(dtype).float() for name, tensor in blended(experts, alpha, PLAIN).items()}
    model.load_state_dict(tensors, strict=False)
    if refreshing:
        refresh_from_few(model, refreshing, lambda model, batch: model(batch[0]))
        rounded = {
            name: t.to(dtype).float() if t.is_floating_point() else t for name, t in statistics_of(model).items()
        }
        model.load_state_dict(rounded, strict=False)
    return model.eval()


@torch.no_grad()
def losses_of(model, batches):
    return torch.cat([example_losses("cross_entropy", model(inputs), targets) for inputs, targets in batches]).double()


def nothing(targets):
    """Charge nothing."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("statistics", ["averaged", "refreshed"])
def test_a_blend_is_judged_as_it_is_written(made, dtype, statistics):
    held_out = held_out_of(made, [Part(FixedBatches(lambda: BOTH, 2), FixedBatches(lambda: REFRESHING, 2))], dtype)
    for alpha in ALPHAS:  # one after the other: nothing of the last one stays
        found = held_out.terms(alpha, statistics, None, nothing)
        refreshing = REFRESHING if statistics == "refreshed" else None
        wanted = losses_of(by_hand(made, alpha, dtype=dtype, refreshing=refreshing), BOTH)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_dtype_of_the_output_shows(made):
    part = Part(FixedBatches(lambda: BOTH, 2), FixedBatches(lambda: REFRESHING, 2))
    exact, rounded = (held_out_of(made, [part], dtype) for dtype in (None, torch.bfloat16))
    one, other = (held_out.terms(ALPHA, "averaged", None, nothing) for held_out in (exact, rounded))
    assert 1e-5 < (one - other).abs().max() < 0.1


def test_each_fold_is_judged_by_its_own_alpha_and_by_statistics_of_other_examples(made):
    parts = [
        Part(FixedBatches(lambda b=batch: [b], 1), FixedBatches(lambda o=other: [o], 1))
        for batch, other in (BOTH, BOTH[::-1])
    ]
    found = held_out_of(made, parts).terms(ALPHAS[:2], "refreshed", None, nothing)
    wanted = [
        losses_of(by_hand(made, alpha, refreshing=[other]), [batch])
        for alpha, (batch, other) in zip(ALPHAS, (BOTH, BOTH[::-1]), strict=False)
    ]
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-4, atol=1e-5)


def test_the_statistics_of_the_file_are_those_it_was_judged_by(made):
    written = written_of(made)
    written.load(ALPHA)
    written.refresh(REFRESHING, Ranks())
    wanted = statistics_of(by_hand(made, ALPHA, refreshing=REFRESHING))
    found = written.statistics()
    assert found.keys() == wanted.keys() and any("num_batches" in name for name in found)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-6)
    assert all((tensor == 0).all() for name, tensor in statistics_of(made[0]).items() if "num_batches" in name)


@pytest.mark.parametrize(
    ("n_batches", "n_terms", "averaged", "refreshed"), [(1, 12, 1, 3), (2, 17, 2, 4), (3, 29, 3, 7)]
)
def test_forwards_are_foretold_and_charged(made, n_batches, n_terms, averaged, refreshed):
    both = Part(FixedBatches(lambda: BOTH, 2), FixedBatches(lambda: REFRESHING, 2))
    one = Part(FixedBatches(lambda: BOTH[:1], 1), FixedBatches(lambda: REFRESHING, 2))
    held_out = held_out_of(made, [both, one])
    assert held_out.n_batches == 3
    for statistics, wanted in (("averaged", averaged), ("refreshed", refreshed)):
        charged = []
        assert len(held_out.terms(ALPHA, statistics, n_batches, charged.append)) == n_terms
        assert len(charged) == wanted == held_out.n_forwards(statistics, n_batches)
    assert held_out.n_forwards("refreshed") == 7
