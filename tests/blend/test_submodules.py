from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from glue_cli.blend import submodules
from glue_cli.blend.submodules import MOST_BLOCKS, find_blocks
from glue_cli.models import build_model

NAMES = st.lists(
    st.lists(st.sampled_from(["layers", "a", "b", "0", "1", "2", "weight"]), min_size=1, max_size=4).map(".".join),
    unique=True,
    max_size=30,
)


def names_of(arch):
    return list(build_model(arch, {"num_classes": 10}, seed=0, folder=Path(".")).state_dict())


def members(names, blocks):
    """Return the tensors of each block."""
    titles, block_of = blocks
    return [[name for name in names if block_of[name] == block] for block in range(len(titles))]


@pytest.mark.parametrize(
    ("arch", "inside"), [("resnet20", "layer2.1."), ("mobilenet_v2", "features.5."), ("vit", "blocks.3.")]
)
def test_a_member_of_a_repeated_submodule_is_not_cut(arch, inside):
    names = names_of(arch)
    titles, block_of = find_blocks(names)
    assert len(titles) == MOST_BLOCKS and set(block_of) == set(names)
    assert len({block_of[name] for name in names if name.startswith(inside)}) == 1
    order = [block_of[name] for name in names]
    assert order == sorted(order)  # neighbours go together


def test_the_blocks_of_a_residual_net(monkeypatch):
    monkeypatch.setattr(submodules, "MOST_BLOCKS", 100)
    names = names_of("resnet20")
    titles, block_of = find_blocks(names)
    layers = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert titles == ("conv1", *layers, "fc")
    assert block_of["bn1.weight"] == block_of["conv1.weight"] == 0 and block_of["fc.bias"] == len(layers) + 1


def transformer(n_layers):
    stem = ["bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.weight"]
    kinds = ("attention.query.weight", "attention.query.bias", "output.dense.weight")
    layers = [f"bert.encoder.layer.{k}.{kind}" for k in range(n_layers) for kind in kinds]
    return [*stem, *layers, "bert.pooler.dense.weight", "classifier.weight"]


def test_stem_and_head_of_a_transformer_are_two():
    names = transformer(3)
    found = members(names, find_blocks(names))
    assert found[0] == names[:2] and found[-1] == names[-2:] and len(found) == 5


def test_layers_are_in_the_order_of_their_numbers_whatever_that_of_the_file():
    names = transformer(12)
    by_alphabet = sorted(names[:-1])  # the classifier would come first
    assert find_blocks(by_alphabet)[1] == find_blocks(names[:-1])[1]


def test_a_model_without_repeated_parts_is_one_block():
    names = list(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4)).state_dict())
    assert len(find_blocks(names)[0]) == 1


def test_nested_repetitions_are_told_apart_by_the_outer_one():
    names = [f"stages.{s}.blocks.{b}.{kind}" for s in range(2) for b in range(3) for kind in ("weight", "bias")]
    assert find_blocks(names)[0] == ("stages.0", "stages.1")


@given(NAMES, st.integers(1, 5))
def test_any_names_get_blocks_in_use(names, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submodules, "MOST_BLOCKS", most)
        titles, block_of = find_blocks(names)
    assert set(block_of) == set(names) and len(titles) <= most and len(set(titles)) == len(titles)
    assert set(block_of.values()) == set(range(len(titles)))
