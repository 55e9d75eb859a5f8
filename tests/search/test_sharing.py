"""Several processes answer as one does: here they are threads of one, which exchange through a list."""

import copy
from functools import cache

import pytest
import torch
from in_threads import by_several
from small_nets import ALPHA, ALPHAS, Attentive, N, batch_of, conv_net, make_experts
from torch import nn

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.ranks import Place, Ranks
from glue_cli.foundation.stopping import Stopped
from glue_cli.running.device import Compute
from glue_cli.running.losses import IGNORED
from glue_cli.search.bank.load import bank_of_tensors
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.criterion import Criterion, criterion_of
from glue_cli.search.held_out import FixedBatches, HeldOut, Judge, Part
from glue_cli.search.leading import LedObjective, answers_of, dismiss, follow
from glue_cli.search.objective import BlendObjective, Minibatches
from glue_cli.search.pieces import WHOLE
from glue_cli.search.sharing import Sharing
from glue_cli.spec.goal import Goal

COORDINATES = torch.tensor([0, 2, 1])
LAUNCHED = Ranks(Place(is_launched=True))


class Reader(nn.Module):
    """A language model: each token's outputs depend on those before it."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, tokens):
        return self.head(self.embed(tokens).cumsum(1))


def texts(step):
    tokens = torch.randint(0, 9, (7, 5), generator=torch.Generator().manual_seed(step))
    wanted = tokens.roll(-1, 1)
    wanted[:, -1], wanted[2], wanted[5, 2:] = IGNORED, IGNORED, IGNORED
    return tokens, wanted


def spread(outputs, targets):
    """A figure of the whole minibatch, which is no mean over its parts."""
    return outputs.double().std()[None]


CASES = {
    "labels": (conv_net, batch_of, "cross_entropy", None),
    "labels in folds": (conv_net, batch_of, "cross_entropy", None),
    "numbers": (Attentive, lambda step: batch_of(step, "mse"), "mse", None),
    "tokens": (Reader, texts, "cross_entropy", None),
    "tokens in folds": (Reader, texts, "cross_entropy", None),
    "a figure of all": (conv_net, batch_of, "cross_entropy", spread),
}


@cache
def made(make):
    """Return what `make_experts` does, made once: the threads share the random state that it draws from."""
    return make_experts(make)


for make, *_ in CASES.values():
    made(make)


def objective_of(case, ranks, tmp_path, kind: Statistics = "averaged"):
    make, batch, loss, terms = CASES[case]
    model, experts = copy.deepcopy(made(make))
    bank = bank_of_tensors((expert.items() for expert in experts), n_experts=3, device=torch.device("cpu"))
    blends = ResidentBlends(model, bank, Compute(torch.device("cpu")), seed=0)
    goal = Goal("python:own:spread", best=0)
    criterion = Criterion(goal, loss, terms) if terms else criterion_of("loss", loss, tmp_path)
    judged = FixedBatches(lambda: [batch(step) for step in range(100, 105)], 5)
    parts = [Part(judged, FixedBatches(lambda: [batch(7), batch(8)], 2))]
    in_folds = {"folds": lambda step: torch.arange(len(batch(step)[1])) % 2, "n_folds": 2} if "folds" in case else {}
    return BlendObjective(
        blends,
        criterion,
        Minibatches(batch, judged.again, judged.n, **in_folds),
        seed=0,
        held_out=HeldOut(Judge(blends.as_written({}), criterion, ranks), parts),
        kinds=("averaged", "refreshed"),
        sharing=Sharing(ranks, is_cut=True),
    ).with_statistics(kind)


def asked(objective):
    """Return the answers to every kind of question, and the account."""
    quadratic = objective.quadratic(ALPHA, COORDINATES, 0.3, 4)
    return [
        objective.probe_losses(ALPHAS[:3], 4),
        objective.probe_losses(ALPHAS[:1], 5),
        torch.tensor(quadratic.loss, dtype=torch.float64),
        quadratic.gradient,
        quadratic.curvature,
        *map(torch.as_tensor, objective.gradient(ALPHA, 4)),
        objective.validation_terms(ALPHA, 4),
        objective.written_terms(ALPHA, "refreshed"),
        torch.tensor([*vars(objective.cost).values()]),
    ]


@pytest.mark.parametrize("kind", ["averaged", "refreshed"])
@pytest.mark.parametrize("case", CASES)
def test_the_answers_do_not_depend_on_the_number_of_processes(tmp_path, case, kind):
    alone = asked(objective_of(case, Ranks(), tmp_path, kind))
    launched = asked(objective_of(case, LAUNCHED, tmp_path, kind))
    for found, wanted in zip(launched, alone, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for n in (2, 3, 7):
        for answers in by_several(n, lambda ranks: asked(objective_of(case, ranks, tmp_path, kind))):
            for found, wanted in zip(answers, launched, strict=True):
                assert torch.equal(found, wanted), (case, n)


@pytest.mark.parametrize("n_rows", [1, 2, 3, 64, 130, 200])
@pytest.mark.parametrize("n_blends", [1, 2, 5])
@pytest.mark.parametrize("order", ["pieces", "blends_first"])
def test_every_blend_sees_every_row_once_whoever_works_on_it(n_rows, n_blends, order):
    for n in (1, 2, 3, 8, 40):
        seen, edges = torch.zeros(n_blends, n_rows), set()
        for rank in range(n):
            ranks = Ranks(Place(rank, n, is_launched=True))
            for piece in getattr(Sharing(ranks, is_cut=True), order)(n_rows, n_blends):
                seen[piece.blends, piece.rows] += 1
                edges.add((piece.rows.start, piece.rows.stop))
        assert (seen == 1).all()
        assert edges == {(p.rows.start, p.rows.stop) for p in Sharing(LAUNCHED, is_cut=True).pieces(n_rows, n_blends)}


def test_two_processes_have_half_of_the_work_each():
    halves = [Sharing(Ranks(Place(rank, 2, is_launched=True)), is_cut=True).pieces(64, 5) for rank in range(2)]
    assert [[(p.rows, p.blends) for p in half] for half in halves] == [
        [(slice(0, 32), slice(0, 5))],
        [(slice(32, 64), slice(0, 5))],
    ]


@pytest.mark.parametrize("is_cut", [True, False])
def test_of_blends_that_are_judged_each_by_itself_two_processes_make_one_each(is_cut):
    for rank in range(2):
        sharing = Sharing(Ranks(Place(rank, 2, is_launched=True)), is_cut=is_cut)
        assert {(p.blends.start, p.blends.stop) for p in sharing.blends_first(64, 2)} == {(rank, rank + 1)}


def test_a_minibatch_is_not_cut_without_a_launcher_or_where_batchnorm_needs_all_of_it():
    for sharing in (Sharing(Ranks(), is_cut=True), Sharing(LAUNCHED, is_cut=False)):
        (piece,) = sharing.pieces(N, 5)
        assert (piece.rows, piece.blends) == (slice(0, N), slice(0, 5))
    assert Sharing(Ranks(), is_cut=True).blends_first(N, 5) is WHOLE
    assert [piece.rows for piece in Sharing(LAUNCHED, is_cut=False).blends_first(N, 2)] == [slice(0, N)] * 2


def test_followers_answer_what_the_first_one_asks_until_they_are_dismissed(tmp_path):
    def work(ranks):
        own = objective_of("labels in folds", ranks, tmp_path)
        if not ranks.is_first:
            return follow(ranks, answers_of(own))
        answers = asked(LedObjective(own, ranks, "averaged"))
        answers += asked(LedObjective(own, ranks, "averaged").with_statistics("refreshed"))
        dismiss(ranks)
        return answers

    found, *others = by_several(3, work)
    assert others == [None, None]
    own = objective_of("labels in folds", LAUNCHED, tmp_path)
    wanted = asked(own) + asked(own.with_statistics("refreshed"))
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_followers_stop_with_the_first_one(tmp_path):
    def work(ranks):
        if ranks.is_first:
            ranks.tell({"stopped_by": 15})
        else:
            with pytest.raises(Stopped) as stopped:
                follow(ranks, {})
            assert (stopped.value.number, stopped.value.exit_code) == (15, 75)

    by_several(2, work)
