"""Experts that several processes hold together: here the processes are threads of one."""

import pytest
import torch
from in_threads import by_several
from odd_nets import Scratch
from small_nets import ALPHA, ALPHAS, ALPHAS_OF_TWO, BOTH, Attentive, batch_of, conv_net, in_turn
from stored_experts import stored_experts
from torch import nn

from glue_cli.blend.recipe import PLAIN
from glue_cli.foundation.errors import ResourceError
from glue_cli.foundation.ranks import Place, Ranks
from glue_cli.running.device import Compute
from glue_cli.search import points
from glue_cli.search.bank.load import load_bank
from glue_cli.search.bank.renamed_experts import rename_experts
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.pieces import Piece
from glue_cli.search.streamed.blends import StreamedBlends
from glue_cli.search.streamed.engine import Engine

CPU = torch.device("cpu")
COORDINATES = torch.tensor([0, 2, 1])


class Wandering(nn.Module):
    """Goes another way for each blend and each example, and uses parameters outside all layers."""

    n_outside = 1

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Linear(32, 16), nn.Parameter(torch.zeros(16))
        self.bias = nn.Parameter(torch.zeros(self.n_outside))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        x = self.embed(images.flatten(1)) + self.position + self.bias.mean()
        for number in [3, 0, 2] if x.sum() > 0 else [1, 0]:
            x = x + self.layers[number](x)
        return self.head(x)


class ByHand(Wandering):
    """Uses a weight of a layer outside that layer."""

    def forward(self, images):
        return self.head(nn.functional.linear(images.flatten(1), self.embed.weight) + self.position)


@pytest.fixture
def world(tmp_path):
    """Return what makes the blends of experts in files: in memory, or held by the processes of a job."""

    def world(make, *, recipe=PLAIN, dtype=None, memory=1 << 30):
        # made here, since a net without weights changes torch for a moment, for all threads
        model, checkpoints, bare = stored_experts(tmp_path, make, dtype)

        def sharded(ranks):
            engine = Engine(
                bare,
                rename_experts(checkpoints, recipe, None),
                (),
                CPU,
                n_groups=len(recipe.groups),
                channels_last=False,
                memory_bytes=memory,
                shared_by=ranks,
            )
            return StreamedBlends(bare, engine, Compute(CPU), seed=0)

        bank = load_bank(checkpoints, device=CPU, recipe=recipe)
        return ResidentBlends(model, bank, Compute(CPU), seed=0), sharded

    return world


def own_pieces(ranks, n_rows, n_blends):
    """Return pieces of very different sizes: the first process has most of the work, the last has none."""
    if ranks.place.rank == ranks.size - 1 and ranks.size > 1:
        return []
    rows = [slice(0, 5), slice(5, n_rows)] if ranks.is_first else [slice(2, 7)]
    return [Piece(each, slice(ranks.place.rank, n_blends)) for each in rows]


def asked(blends, ranks, alphas):
    """Return the outputs that a process gets, of its own pieces of each question."""
    pieces = own_pieces(ranks, 12, 2)
    found = [outputs for outputs, _ in blends.outputs(alphas[:2], BOTH, 1, pieces=pieces)]
    n_batches = 40 * (ranks.size - 1 - ranks.place.rank)  # some processes are done much earlier than others
    found += [outputs for outputs, _ in blends.outputs(alphas[:1], BOTH[:1] * n_batches, 2)]
    pieces = own_pieces(ranks, 12, 3)
    found += blends.towards(alphas[0], COORDINATES, 0.1, batch_of(1), 3, pieces=pieces)
    return found


def check_same(world, n, alphas=ALPHAS, **options):
    resident, sharded = world
    found = by_several(n, lambda ranks: asked(sharded(ranks), ranks, alphas))
    for rank, own in enumerate(found):
        wanted = asked(resident, Ranks(Place(rank, n)), alphas)
        assert len(own) == len(wanted)
        assert all(torch.equal(*pair) for pair in zip(own, wanted, strict=True))
    assert len({len(own) for own in found}) == n


@pytest.mark.parametrize("make", [conv_net, Attentive, Wandering, ByHand, Scratch])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_bits_are_those_of_blends_in_memory_whoever_runs_what(world, make, n):
    check_same(world(make), n)


@pytest.mark.parametrize("columns", [0, 1 << 26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_for_large_models_and_other_dtypes(world, monkeypatch, columns, dtype):
    monkeypatch.setattr(points, "_PASS_BYTES", 0)
    monkeypatch.setattr(points, "_LARGE_COLUMNS", columns)
    check_same(world(Wandering, dtype=dtype), 2)


def test_the_same_bits_for_groups(world):
    check_same(world(Attentive, recipe=in_turn(Attentive, 2)), 3, ALPHAS_OF_TWO)


def test_a_blend_as_its_file_will_be(world):
    resident, sharded = world(conv_net)
    names = dict.fromkeys(conv_net().state_dict(), torch.bfloat16)

    def judged(blends, n_batches, ranks):
        blend = blends.as_written(names)
        blend.load(ALPHA)
        blend.refresh(BOTH, ranks)  # fewer than processes
        return [outputs for outputs, _ in blend.outputs(BOTH[:1] * n_batches)], blend.statistics()

    answers = by_several(3, lambda ranks: judged(sharded(ranks), 20 * ranks.place.rank, ranks))
    for rank, (found, own) in enumerate(answers):
        wanted, statistics = judged(resident, 20 * rank, Ranks())
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
        assert all(torch.equal(own[name], statistics[name]) for name in statistics)


def test_each_process_holds_its_share_and_a_block_has_to_fit(world):
    sharded = world(Wandering)[1]

    def held(ranks):
        blends = sharded(ranks)
        list(blends.outputs(ALPHAS[:1], BOTH[:1], 1))
        shards = blends._engine._blender.reader
        return sum(bank.n_experts * bank.n_columns for banks in shards.banks.values() for bank in banks)

    n_parameters = sum(parameter.numel() for parameter in Wandering().parameters())
    for n in (1, 2, 4):
        shares = by_several(n, held)
        assert 3 * n_parameters <= sum(shares) < 3 * n_parameters + 3 * n * 16 * 20 and len({*shares}) == 1
    too_little = world(Wandering, memory=4000)[1]
    with pytest.raises(ResourceError, match="each of 2 processes holds .* do not fit into 4"):
        by_several(2, too_little)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tensors_outside_blocks_count_and_the_bits_stay_the_same(world, monkeypatch, n):
    """A large tensor outside all layers is kept for each blend that runs: fewer run together, in as many processes."""
    monkeypatch.setattr(Wandering, "n_outside", 3000)
    keep, kept = Engine._keep, []
    monkeypatch.setattr(Engine, "_keep", lambda *arguments: kept.append(keep(*arguments)) or kept[-1])
    check_same(world(Wandering), n)
    plenty = max(map(len, kept))
    for memory in range(20_000, 300_000, 4000):
        kept.clear()
        try:
            check_same(world(Wandering, memory=memory), n)
        except ResourceError:
            continue
        break
    assert 1 <= max(map(len, kept)) < plenty
