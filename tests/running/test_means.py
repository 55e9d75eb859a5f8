import pytest
import torch

from glue_cli.running.losses import IGNORED
from glue_cli.running.means import ExampleSums, mean_of


def test_a_mean_is_taken_in_float64():
    terms = torch.rand(1000) * 10 ** torch.randint(-3, 4, (1000,))
    assert mean_of(terms).dtype == torch.float64
    assert mean_of(terms).item() == pytest.approx(terms.double().mean().item(), rel=1e-12)


def test_a_term_that_is_no_number_shows():
    assert mean_of(torch.tensor([1.0, torch.nan])).isnan()


@pytest.mark.parametrize("targets", [torch.tensor([0, 1, 2]), torch.rand(3, 4)])
def test_an_example_with_one_term_has_it_for_its_share(targets):
    terms = torch.tensor([1.0, 2.0, 6.0])
    assert torch.equal(ExampleSums.join([ExampleSums.of(terms, targets)]).shares, terms.double())


def test_a_text_counts_with_all_its_tokens():
    """Wherever batches are cut, the mean of the shares is that over all tokens."""
    targets = torch.tensor([[1, 2, IGNORED], [3, IGNORED, IGNORED], [IGNORED] * 3, [4, 5, 6]])
    terms = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    whole = ExampleSums.of(terms, targets)
    assert whole.sums.tolist() == [3, 4, 0, 56] and whole.counts.tolist() == [2, 1, 0, 3]
    parts = [ExampleSums.of(terms[:3], targets[:2]), ExampleSums.of(terms[3:], targets[2:])]
    for found in (ExampleSums.join([whole]), ExampleSums.join(parts)):
        assert found.shares.tolist() == [3 / 1.5, 4 / 1.5, 0, 56 / 1.5]
        assert found.shares.mean().item() == pytest.approx(terms.mean().item(), rel=1e-12)


def test_a_term_of_a_whole_batch_of_texts_counts_as_one_example():
    found = ExampleSums.of(torch.tensor([0.25], dtype=torch.float64), torch.tensor([[1, 2], [3, 4]]))
    assert (found.sums.tolist(), found.counts.tolist()) == ([0.25], [1])
