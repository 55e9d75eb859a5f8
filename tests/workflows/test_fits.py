"""Models and data that do not fit each other, and would give figures all the same."""

import pytest
import torch
from torch import nn

from glue_cli.data.dataset import Dataset, Ragged
from glue_cli.data.loader import Examples
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.progress import Noted
from glue_cli.workflows.fits import check_fits_data, warn_of_neighbours


def check(model, inputs, targets, loss="mse"):
    check_fits_data(model, Examples(Dataset(inputs, targets), None, None), loss, "d")


@pytest.mark.parametrize(
    ("outputs", "targets", "fits"),
    [
        ((2, 5), (5, 2), False),
        ((5, 2), (5, 2), True),
        ((10,), (5, 2), True),
        ((5, 1, 2), (5, 2), True),
        ((1,), (), True),
        ((5, 2), (10,), True),
        ((3,), (2,), False),
    ],
)
def test_numbers_are_compared_in_their_order(outputs, targets, fits):
    n_outputs = torch.Size(outputs).numel()
    model = nn.Sequential(nn.Linear(4, n_outputs), nn.Unflatten(1, outputs) if len(outputs) > 1 else nn.Identity())
    if fits:
        check(model, torch.zeros(3, 4), torch.zeros(3, *targets))
    else:
        with pytest.raises(SpecError, match="the model's outputs are .*, the targets"):
            check(model, torch.zeros(3, 4), torch.zeros(3, *targets))


class Stacked(nn.Linear):
    """Its outputs are [n, N] instead of [N, n]."""

    def forward(self, inputs):
        return super().forward(inputs).T


@pytest.mark.parametrize("n_outputs", [2, 3])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_outputs_before_the_examples_are_told_whatever_the_sizes(n_outputs, loss):
    targets = torch.zeros(5, n_outputs) if loss == "mse" else torch.zeros(5, dtype=torch.int64)
    with pytest.raises(SpecError, match="the model's outputs are"):
        check(Stacked(4, n_outputs), torch.zeros(5, 4), targets, loss)
    check(nn.Linear(4, n_outputs), torch.zeros(5, 4), targets, loss)


def test_labels_for_a_single_output_are_a_regression():
    with pytest.raises(DataError, match="the model has 1 outputs") as caught:
        check(nn.Linear(4, 1), torch.zeros(3, 4), torch.tensor([1, 4, 2]), "cross_entropy")
    assert "data.columns: {target: NAME}" in caught.value.hint


@pytest.mark.parametrize(
    ("last", "loss", "is_told"),
    [
        (nn.Softmax(1), "cross_entropy", True),
        (nn.LogSoftmax(1), "cross_entropy", False),
        (nn.Sigmoid(), "cross_entropy", False),
        (nn.Softmax(1), "mse", False),
    ],
)
def test_probabilities_in_place_of_logits_are_told(last, loss, is_told):
    torch.manual_seed(0)
    events, model = [], nn.Sequential(nn.Linear(4, 3), last)
    targets = torch.zeros(5, 3) if loss == "mse" else torch.zeros(5, dtype=torch.int64)
    examples = Examples(Dataset(torch.randn(5, 4), targets), None, None)
    check_fits_data(model, examples, loss, "d", events.append)
    assert ["leave the softmax out" in event.text for event in events] == [True] * is_told


class Reader(nn.Module):
    """A model of tokens, which mixes those of a text by a mask [T, T] of what each may see."""

    def __init__(self, may_see):
        super().__init__()
        self.embedding, self.head, self.may_see = nn.Embedding(9, 6), nn.Linear(6, 9), may_see

    def forward(self, input_ids, attention_mask):
        seen = self.may_see(torch.ones(input_ids.shape[1], input_ids.shape[1]))
        return self.head((seen / seen.sum(1, keepdim=True)) @ self.embedding(input_ids))


@pytest.mark.parametrize("n_tokens", [2, 7])
def test_a_model_that_sees_the_tokens_it_is_to_predict_is_refused(n_tokens):
    rows = [[1, *range(2, n_tokens), 1], [3, 4]]  # the longest ends as it begins
    lengths = torch.tensor([len(row) for row in rows])
    tokens = Ragged(torch.tensor(sum(rows, []), dtype=torch.int32), lengths.cumsum(0) - lengths, lengths)
    check(Reader(torch.tril), tokens, tokens.following(), "cross_entropy")
    with pytest.raises(SpecError, match="the Reader sees the tokens that it is to predict") as caught:
        check(Reader(lambda mask: mask), tokens, tokens.following(), "cross_entropy")
    assert "masked ones, need labels" in caught.value.hint


def test_a_classifier_of_texts_without_labels_is_told_to_name_them():
    tokens = Ragged(torch.arange(6, dtype=torch.int32), torch.tensor([0, 3]), torch.tensor([3, 3]))

    class Classifier(Reader):
        def forward(self, **inputs):
            return super().forward(**inputs).mean(1)

    with pytest.raises(SpecError, match="wanted .*'classes'") as caught:
        check(Classifier(torch.tril), tokens, tokens.following(), "cross_entropy")
    assert "needs labels" in caught.value.hint


@pytest.mark.usefixtures("torchvision")
def test_models_of_transformers_that_glue_has_no_loss_for_are_called_so():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    tokens = Ragged(torch.arange(6, dtype=torch.int32), torch.tensor([0, 3]), torch.tensor([3, 3]))
    model = transformers.BertForMultipleChoice(transformers.BertConfig(**sizes, vocab_size=9))
    with pytest.raises(SpecError) as caught:
        check(model, tokens, tokens.following(), "cross_entropy")
    assert caught.value.hint.startswith("glue has no loss for a BertForMultipleChoice")


@pytest.mark.usefixtures("torchvision")
def test_a_model_of_encoder_and_decoder_is_told_what_it_needs():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    tokens = Ragged(torch.arange(6, dtype=torch.int32), torch.tensor([0, 3]), torch.tensor([3, 3]))
    with pytest.raises(SpecError) as caught:
        check(transformers.T5ForConditionalGeneration(config), tokens, tokens.following(), "cross_entropy")
    assert "{prompt: NAME, completion: NAME}" in caught.value.hint


@pytest.mark.usefixtures("torchvision")
def test_models_of_several_labels_or_of_numbers_are_refused_and_too_long_texts_are_told():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sizes |= {"vocab_size": 9, "max_position_embeddings": 4, "num_labels": 3}
    tokens = Ragged(torch.arange(9, dtype=torch.int32), torch.tensor([0, 3]), torch.tensor([3, 3]))
    for problem_type, told in (("multi_label_classification", "several labels an example"), ("regression", "numbers")):
        config = transformers.BertConfig(**sizes, problem_type=problem_type)
        with pytest.raises(SpecError, match=f"was made for {told}") as caught:
            check(transformers.BertForSequenceClassification(config), tokens, torch.tensor([0, 1]), "cross_entropy")
        assert ("set loss: mse" in caught.value.hint) == (problem_type == "regression")
    long = Ragged(torch.arange(9, dtype=torch.int32), torch.tensor([0, 0]), torch.tensor([9, 3]))
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    with pytest.raises(SpecError) as caught:
        check(model, long, torch.tensor([0, 1]), "cross_entropy")
    assert caught.value.hint == "the model takes texts of at most 4 tokens: set data.max_length"


class Mean(nn.Module):
    """The mean of a text's embeddings, with or without its padding's."""

    def __init__(self, *, masks):
        super().__init__()
        self.table, self.last, self.masks = nn.Embedding(9, 4), nn.Linear(4, 3), masks

    def forward(self, input_ids, attention_mask):
        weights = (attention_mask if self.masks else torch.ones_like(attention_mask))[..., None]
        return self.last((self.table(input_ids) * weights).sum(1) / weights.sum(1))


@pytest.mark.parametrize(
    ("texts", "masks", "is_told"),
    [
        ([[1, 2, 3, 4, 5], [6]], False, True),
        ([[1, 2, 3, 4, 5], [6]], True, False),
        ([[1, 2], [6, 7]], False, False),
    ],
)
def test_padding_that_counts_is_told(texts, masks, is_told):
    torch.manual_seed(0)
    events, model = [], Mean(masks=masks)
    examples = Examples(Dataset(Ragged.of(texts), torch.tensor([0, 1])), None, None)
    warn_of_neighbours(model, examples, events.append)
    assert model.training and ["does not mask padding" in event.text for event in events] == [True] * is_told
    assert all(isinstance(event, Noted) and event.warning for event in events)


@pytest.mark.parametrize("tracks", [True, False])
def test_statistics_of_the_batch_are_told(tracks):
    events, model = [], nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=tracks))
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    warn_of_neighbours(model, Examples(Dataset(inputs, torch.tensor([0, 1, 2])), None, None), events.append)
    assert ["lets examples see each other" in event.text for event in events] == ([] if tracks else [True])


class Noisy(nn.Linear):
    """Draws in eval mode too."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs + torch.randn_like(outputs)


def test_noise_is_not_taken_for_a_neighbour():
    events, inputs = [], torch.randn(3, 4)
    warn_of_neighbours(Noisy(4, 2), Examples(Dataset(inputs, torch.tensor([0, 1, 1])), None, None), events.append)
    assert events == []
