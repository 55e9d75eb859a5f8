import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glue_cli.data.partition import dirichlet_share, draw_folds, draw_val, free_indices, target_split
from glue_cli.foundation.errors import SpecError
from glue_cli.spec.schema import TargetSpec


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """torch's sort starts all threads for a few numbers: 50 times slower where another process wants the cores too."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def test_validation_examples_of_a_val_split():
    drawn = draw_val(100, 30, seed=0)
    assert len(drawn.unique()) == 30 and torch.equal(drawn, drawn.sort().values) and drawn.max() < 100
    assert torch.equal(drawn, draw_val(100, 30, seed=0)) and not torch.equal(drawn, draw_val(100, 30, seed=1))
    assert draw_val(5, 5, seed=0).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(SpecError, match="data.target asks for 6 validation examples, but the val split has 5"):
        draw_val(5, 6, seed=0)


@given(st.integers(2, 60), st.integers(2, 8), st.integers(0, 2**40))
def test_each_example_is_held_out_once(n, n_folds, seed):
    folds = draw_folds(n, n_folds, seed=seed)
    assert len(folds) == min(n, n_folds)
    held_out = [indices for _, indices in folds]
    assert torch.cat(held_out).sort().values.tolist() == list(range(n))
    sizes = [len(indices) for indices in held_out]
    assert max(sizes) - min(sizes) <= 1
    for kept, indices in folds:
        assert torch.cat([kept, indices]).sort().values.tolist() == list(range(n)) and len(kept) > 0
    again = draw_folds(n, n_folds, seed=seed)
    assert all(torch.equal(a, b) for one, two in zip(folds, again, strict=True) for a, b in zip(one, two, strict=True))


def test_folds_are_drawn_by_the_seed():
    assert draw_folds(50, 5, seed=0)[0][1].tolist() != draw_folds(50, 5, seed=1)[0][1].tolist()
    assert draw_folds(50, 5, seed=0)[0][1].tolist() != list(range(0, 50, 5))


@given(st.integers(2, 200), st.data(), st.integers(0, 2**40), st.booleans())
def test_target_split_is_disjoint_exact_and_pure(n, data, seed, has_val):
    n_val = data.draw(st.integers(1, n - 1))
    n_train = data.draw(st.integers(1, n - n_val))
    target = TargetSpec(train=n_train, val=n_val)
    train, val = target_split(n, target, seed=seed, has_val=has_val)
    assert len(train) == n_train and len(val) == (0 if has_val else n_val)
    drawn = torch.cat([train, val])
    assert drawn.dtype == torch.int64 and len(drawn.unique()) == len(drawn) and 0 <= drawn.min() <= drawn.max() < n
    again = target_split(n, target, seed=seed, has_val=has_val)
    assert torch.equal(again[0], train) and torch.equal(again[1], val)
    free = free_indices(n, train, val)
    assert len(free) == n - len(drawn) and not set(free.tolist()) & set(drawn.tolist())


def test_target_defaults():
    train, val = target_split(1000, TargetSpec(), seed=0, has_val=False)
    assert (len(train), len(val)) == (900, 100)
    train, val = target_split(1000, TargetSpec(), seed=0, has_val=True)
    assert (len(train), len(val)) == (1000, 0)
    train, val = target_split(1000, TargetSpec(val=1), seed=0, has_val=False)
    assert (len(train), len(val)) == (999, 1)
    assert [len(part) for part in target_split(5, TargetSpec(), seed=0, has_val=False)] == [4, 1]


def test_a_smaller_target_lies_inside_a_larger_one():
    small, val = target_split(1000, TargetSpec(train=50, val=100), seed=3, has_val=False)
    large, same = target_split(1000, TargetSpec(train=500, val=100), seed=3, has_val=False)
    assert torch.equal(val, same) and set(small.tolist()) < set(large.tolist())


def test_seeds_draw_other_targets():
    first, second = (target_split(1000, TargetSpec(train=100), seed=seed, has_val=False)[0] for seed in (0, 1))
    assert len(set(first.tolist()) & set(second.tolist())) < 40


def test_target_is_drawn_evenly():
    hits = torch.zeros(20)
    for seed in range(400):
        hits[target_split(20, TargetSpec(train=5, val=1), seed=seed, has_val=False)[0]] += 1
    assert (hits - 100).abs().max() < 5 * (400 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(
    ("target", "has_val", "message"),
    [
        (TargetSpec(train=95), False, "asks for 95 training and 10 validation examples, but the train split has 100"),
        (TargetSpec(val=100), False, "asks for 1 training and 100 validation"),
        (TargetSpec(train=101), True, "asks for 101 training examples, but the train split has 100"),
    ],
)
def test_more_than_there_is(target, has_val, message):
    with pytest.raises(SpecError, match="data.target " + message):
        target_split(100, target, seed=0, has_val=has_val)


@st.composite
def shares(draw):
    n_classes = draw(st.integers(1, 8))
    labels = torch.tensor(draw(st.lists(st.integers(0, n_classes - 1), min_size=1, max_size=120)))
    free_idx = torch.tensor(sorted(draw(st.sets(st.integers(0, len(labels) - 1), min_size=1))))
    return labels, free_idx, {
        "size": draw(st.integers(1, len(free_idx))),
        "concentration": draw(st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 100.0, 1e8])),
        "n_classes": n_classes,
        "seed": draw(st.integers(0, 2**62)),
        "expert": draw(st.integers(0, 50)),
    }  # fmt: skip


@given(shares())
def test_share_is_exact_free_and_pure(given_share):
    labels, free_idx, settings = given_share
    share = dirichlet_share(labels, free_idx, **settings)
    assert len(share.indices) == settings["size"] == sum(share.class_counts)
    assert torch.equal(share.indices, share.indices.unique())  # sorted, each once
    assert set(share.indices.tolist()) <= set(free_idx.tolist())
    counts = labels[share.indices].bincount(minlength=settings["n_classes"])
    assert counts.tolist() == list(share.class_counts)
    available = labels[free_idx].bincount(minlength=settings["n_classes"]).tolist()
    for count, short, there in zip(share.class_counts, share.shortfall, available, strict=True):
        assert 0 <= count <= there and short >= 0 and (count == there or short == 0)
    again = dirichlet_share(labels, free_idx.flip(0), **settings)
    assert torch.equal(again.indices, share.indices)


def draw_counts(concentration, n_draws=400, n_classes=4, size=1000):
    labels = torch.arange(n_classes).repeat_interleave(size)
    free_idx = torch.arange(len(labels))
    return torch.tensor(
        [
            dirichlet_share(
                labels, free_idx, size=size, concentration=concentration, n_classes=n_classes, seed=0, expert=expert
            ).class_counts
            for expert in range(n_draws)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("concentration", [0.1, 1.0, 10.0])
def test_proportions_have_the_dirichlet_mean_and_variance(concentration):
    proportions = draw_counts(concentration) / 1000
    variance = (1 / 4) * (3 / 4) / (4 * concentration + 1)
    assert (proportions.mean(0) - 1 / 4).abs().max() < 5 * (variance / 400) ** 0.5
    assert (proportions.var(0) / variance - 1).abs().max() < 0.4


def test_a_tiny_concentration_gives_one_class_and_a_huge_one_equal_parts():
    tiny = draw_counts(1e-6, n_draws=200)
    assert (tiny.max(1).values == 1000).all()
    assert tiny.argmax(1).bincount(minlength=4).min() > 20
    assert ((draw_counts(1e10, n_draws=3) - 250).abs() <= 1).all()


def test_a_class_with_too_few_is_capped_and_the_rest_keep_their_proportions():
    labels = torch.tensor([0] * 10 + [1] * 1000 + [2] * 1000)
    share = dirichlet_share(
        labels, torch.arange(len(labels)), size=900, concentration=1e9, n_classes=3, seed=0, expert=0
    )
    assert share.class_counts[0] == 10 and abs(share.class_counts[1] - 445) <= 1
    assert 289 <= share.shortfall[0] <= 291 and share.shortfall[1:] == (0, 0)


def test_what_has_no_proportion_fills_up_by_what_there_is():
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] * 30)
    for expert in range(20):
        settings = {"size": 45, "concentration": 1e-9, "n_classes": 3, "seed": 0, "expert": expert}
        share = dirichlet_share(labels, torch.arange(50), **settings)
        assert sum(share.class_counts) == 45 and sum(share.shortfall) in (15, 35)


def test_experts_and_seeds_draw_shares_of_their_own():
    labels = torch.arange(10).repeat(100)
    common = {"size": 100, "concentration": 1.0, "n_classes": 10}
    drawn = {
        dirichlet_share(labels, torch.arange(1000), **common, seed=seed, expert=expert).class_counts
        for seed in range(3)
        for expert in range(5)
    }
    assert len(drawn) == 15


def test_share_of_more_than_is_free():
    with pytest.raises(SpecError, match="experts.size is 6, but data.target leaves 5 of 8 training examples"):
        dirichlet_share(
            torch.zeros(8, dtype=torch.int64),
            torch.arange(5),
            size=6,
            concentration=1.0,
            n_classes=1,
            seed=0,
            expert=0,
        )


def test_the_draw_stays_what_it_was():
    """Runs of one seed must stay comparable: a change here is a change of every experiment, and is to be announced."""
    labels = torch.arange(3).repeat(20)
    share = dirichlet_share(labels, torch.arange(60), size=12, concentration=1.0, n_classes=3, seed=0, expert=1)
    train, val = target_split(60, TargetSpec(train=4, val=2), seed=0, has_val=False)
    assert (share.class_counts, train.tolist(), val.tolist()) == ((2, 3, 7), [7, 9, 24, 48], [50, 55])
