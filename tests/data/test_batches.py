from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from glue_cli.data.batches import (
    batches_by_length,
    bucketed_batches,
    crop,
    epoch_batches,
    flip,
    normalise,
    token_batch,
)
from glue_cli.data.dataset import Ragged


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def some_images(n=5, n_channels=3, height=6, width=7):
    return torch.randint(1, 256, (n, n_channels, height, width), dtype=torch.uint8, generator=draws(1))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.4, 0.3), (0.2, 0.3, 0.1)), ((0.5,), (0.25,)), (None, None)])
def test_normalise_images(mean, std, channels_last):
    images = some_images()
    centre = torch.tensor(mean or (0,), dtype=torch.float64).view(-1, 1, 1)
    spread = torch.tensor(std or (1,), dtype=torch.float64).view(-1, 1, 1)
    outputs = normalise(images, mean, std, channels_last=channels_last)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs.double(), (images.double() / 255 - centre) / spread, atol=2e-6, rtol=1e-6)
    assert outputs.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_normalise_lets_floats_pass_unless_told_otherwise():
    inputs = torch.randn(4, 3, generator=draws())
    before = inputs.clone()
    assert normalise(inputs, channels_last=True) is inputs
    outputs = normalise(inputs, (1.0, 2.0, 3.0), (2.0,), channels_last=True)
    torch.testing.assert_close(outputs, (inputs - torch.tensor([1.0, 2.0, 3.0])) / 2)
    torch.testing.assert_close(normalise(inputs, None, (2.0,), channels_last=False), inputs / 2)
    assert torch.equal(inputs, before)
    assert normalise(torch.ones(5), (1.0,), channels_last=False).tolist() == [0.0] * 5


def crop_one_by_one(images, padding, generator):
    n, _, height, width = images.shape
    down, right = torch.randint(0, 2 * padding + 1, (2, n, 1, 1), generator=generator).flatten(1).tolist()
    padded = F.pad(images, (padding,) * 4)
    cut = [padded[i, :, down[i] : down[i] + height, right[i] : right[i] + width] for i in range(n)]
    return torch.stack(cut)


@given(
    st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), st.integers(0, 99)
)
def test_crop_agrees_with_a_loop_over_images(n, n_channels, height, width, padding, seed):
    images = some_images(n, n_channels, height, width)
    before = images.clone()
    outputs = crop(images, padding, draws(seed))
    assert torch.equal(outputs, crop_one_by_one(images, padding, draws(seed))) and torch.equal(images, before)
    assert outputs.is_contiguous() and outputs.dtype == torch.uint8


def test_crop_draws_every_offset_evenly():
    point = torch.zeros(9_000, 1, 3, 3, dtype=torch.uint8)
    point[:, :, 1, 1] = 1
    hits = crop(point, 1, draws()).sum(0).flatten()
    assert (hits - 1_000).abs().max() < 5 * 1_000**0.5


def test_crop_of_images_in_channels_last_and_of_floats():
    images = some_images()
    expected = crop(images, 2, draws())
    assert torch.equal(crop(images.contiguous(memory_format=torch.channels_last), 2, draws()), expected)
    assert torch.equal(crop(images.float(), 2, draws()), expected.float())


@given(st.integers(1, 9), st.integers(0, 99))
def test_flip_agrees_with_a_loop_over_images(n, seed):
    images = some_images(n)
    before = images.clone()
    mirrored = torch.rand(n, generator=draws(seed)) < 0.5
    reference = torch.stack(
        [image.flip(2) if chosen else image for image, chosen in zip(images, mirrored.tolist(), strict=True)]
    )
    assert torch.equal(flip(images, draws(seed)), reference) and torch.equal(images, before)


def test_flip_mirrors_half_of_the_images():
    images = torch.tensor([0, 1], dtype=torch.uint8).expand(10_000, 1, 1, 2)
    assert abs(int(flip(images, draws())[:, 0, 0, 0].sum()) - 5_000) < 5 * 50


@given(st.integers(1, 50), st.integers(1, 60), st.booleans(), st.integers(0, 99))
def test_an_epoch_visits_every_example_once(n, batch_size, drop_last, seed):
    batches = list(epoch_batches(n, batch_size, draws(seed), drop_last=drop_last))
    visited = [i for batch in batches for i in batch.tolist()]
    assert len(set(visited)) == len(visited) == (n - n % batch_size if drop_last else n)
    assert all(len(batch) == batch_size for batch in batches[: len(batches) if drop_last else -1])
    again = epoch_batches(n, batch_size, draws(seed), drop_last=drop_last)
    assert all(torch.equal(*pair) for pair in zip(batches, again, strict=True))


def test_epochs_are_shuffled():
    generator = draws()
    first, second = (torch.cat(list(epoch_batches(100, 10, generator))) for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(first, torch.arange(100))


some_lengths = st.lists(st.integers(1, 90), min_size=1, max_size=400).map(torch.tensor)


@given(some_lengths, st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_a_bucketed_epoch_visits_every_text_once(lengths, batch_size, drop_last, seed):
    n = len(lengths)
    batches = list(bucketed_batches(lengths, batch_size, draws(seed), drop_last=drop_last))
    visited = torch.cat([*batches, torch.empty(0, dtype=torch.int64)])
    assert len(visited.unique()) == len(visited) == (n - n % batch_size if drop_last else n)
    assert sorted(map(len, batches))[1:] == [batch_size] * max(len(batches) - 1, 0)
    again = bucketed_batches(lengths, batch_size, draws(seed), drop_last=drop_last)
    assert all(torch.equal(*pair) for pair in zip(batches, again, strict=True))


def test_bucketed_batches_hold_texts_of_like_length_in_random_order():
    lengths = torch.randint(5, 500, (3200,), generator=draws())
    batches = list(bucketed_batches(lengths, 16, draws()))
    spread = sum(int(lengths[batch].max() - lengths[batch].min()) for batch in batches) / len(batches)
    assert spread < 30  # at random it is 440
    means = torch.stack([lengths[batch].double().mean() for batch in batches])
    neighbours = torch.corrcoef(torch.stack([means[:-1], means[1:]]))[0, 1]
    assert abs(neighbours) < 5 / len(batches) ** 0.5
    other = list(bucketed_batches(lengths, 16, draws(1)))
    assert {tuple(sorted(batch.tolist())) for batch in batches} != {tuple(sorted(batch.tolist())) for batch in other}


@given(some_lengths, st.integers(1, 30), st.integers(1, 200))
def test_by_length_no_batch_is_too_large_and_the_longest_text_comes_first(lengths, batch_size, n_tokens):
    batches = list(batches_by_length(lengths, batch_size, n_tokens))
    order = torch.cat(batches)
    assert torch.equal(order.sort().values, torch.arange(len(lengths)))
    assert torch.equal(lengths[order], lengths.sort(descending=True).values)
    for batch in batches:
        assert len(batch) <= batch_size and (len(batch) * int(lengths[batch].max()) <= n_tokens or len(batch) == 1)
    for batch in batches[:-1]:  # none could have taken one text more
        assert len(batch) == batch_size or (len(batch) + 1) * int(lengths[batch].max()) > n_tokens


def test_a_batch_of_texts_is_padded_to_its_longest():
    values = torch.tensor([5, 6, 7, 8], dtype=torch.int32)
    tokens = Ragged(values, torch.tensor([0, 3]), torch.tensor([3, 1]), padding=9)
    inputs, labels = token_batch(tokens, torch.tensor([1, 0]))
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]] and labels.tolist() == [1, 0]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert all(tensor.dtype == torch.int64 for tensor in inputs.values()) and len(inputs) == 2
    pairs = replace(tokens, types=torch.tensor([0, 1, 1, 1], dtype=torch.int32))
    inputs, _ = token_batch(pairs, torch.tensor([1, 0]))
    assert inputs["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert inputs["token_type_ids"].dtype == torch.int64
    _, targets = token_batch(tokens, tokens.following())
    assert targets.tolist() == [[6, 7, -100], [-100, -100, -100]]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_a_gpu_are_those_of_the_cpu():
    images = some_images(64, 3, 32, 32)
    there = images.cuda()
    assert torch.equal(crop(there, 4, draws()).cpu(), crop(images, 4, draws()))
    assert torch.equal(flip(there, draws()).cpu(), flip(images, draws()))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    expected = normalise(images, mean, std, channels_last=True)
    torch.testing.assert_close(normalise(there, mean, std, channels_last=True).cpu(), expected)
