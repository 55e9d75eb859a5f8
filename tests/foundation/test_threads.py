"""Python threads in each of which torch keeps to one thread of its own."""

from pathlib import Path

import pytest
import torch

from glue_cli.foundation.threads import restored_threads, share_out, single_threaded

TASKS = Path("/proc/self/task")  # a folder a thread


@pytest.fixture(params=[1, 2, 5])
def n_torch_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_torch_has_one_thread_in_the_block_and_what_it_had_behind_it(n_torch_threads):
    with single_threaded(3):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == n_torch_threads
    with pytest.raises(KeyError), single_threaded(2):
        raise KeyError
    assert torch.get_num_threads() == n_torch_threads


def test_what_is_set_in_a_block_or_a_function_ends_with_it(n_torch_threads):
    @restored_threads()
    def command(n, fails):
        torch.set_num_threads(n)
        return 1 / fails

    assert command(3, 1) == 1 and torch.get_num_threads() == n_torch_threads
    with pytest.raises(ZeroDivisionError):
        command(4, 0)
    assert torch.get_num_threads() == n_torch_threads


@pytest.mark.skipif(not TASKS.is_dir(), reason="the system does not list a process's threads there")
def test_products_in_the_pool_start_no_threads_of_their_own():
    left, right = torch.ones(2, 8), torch.ones(8, 1 << 20)

    def n_threads_of_a_product(_):
        torch.mm(left, right)
        return len(list(TASKS.iterdir()))

    before = len(list(TASKS.iterdir()))
    with single_threaded(2) as pool:
        assert max(pool.map(n_threads_of_a_product, range(8))) <= before + 2


@pytest.mark.parametrize("n_items", [0, 1, 7, 1000])
def test_results_are_in_the_items_order(n_torch_threads, n_items):
    assert share_out(lambda item: item * item, range(n_items)) == [item * item for item in range(n_items)]


def test_an_error_of_an_item_is_raised(n_torch_threads):
    def work(item):
        return 1 / (item - 500)

    with pytest.raises(ZeroDivisionError):
        share_out(work, range(1000))
    assert torch.get_num_threads() == n_torch_threads
