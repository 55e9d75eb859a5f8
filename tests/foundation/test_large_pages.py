"""Buffers in large pages of memory."""

import gc
import mmap
import weakref

import pytest
import torch

from glue_cli.foundation import large_pages
from glue_cli.foundation.large_pages import LARGE_PAGE, empty_bytes


@pytest.mark.parametrize("n_bytes", [0, 1, 5000, (20 << 20) + 7])
def test_a_buffer_has_as_many_bytes_as_asked_for_and_can_be_written(n_bytes):
    buffer = empty_bytes(n_bytes)
    assert buffer.dtype == torch.uint8 and buffer.shape == (n_bytes,)
    assert buffer.fill_(3).sum(dtype=torch.int64) == 3 * n_bytes


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux alone has large pages by advice")
def test_a_large_one_begins_at_a_large_page_and_goes_when_no_tensor_refers_to_it(monkeypatch):
    mapped = []

    class Mapping(mmap.mmap):
        def __new__(cls, *arguments, **named):
            made = super().__new__(cls, *arguments, **named)
            mapped.append(weakref.ref(made))
            return made

    monkeypatch.setattr(large_pages.mmap, "mmap", Mapping)
    buffer = empty_bytes(24 << 20)
    view = buffer[5:9]
    assert buffer.data_ptr() % LARGE_PAGE == 0
    del buffer
    gc.collect()
    assert mapped[0]() is not None
    del view
    gc.collect()
    assert mapped[0]() is None


def test_without_advice_a_buffer_is_as_any_other(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert empty_bytes(17 << 20).shape == (17 << 20,)


def test_too_little_memory_is_an_error_that_is_known_as_one(monkeypatch):
    def refuse(*arguments, **named):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(large_pages.mmap, "mmap", refuse)
    monkeypatch.setattr(large_pages.mmap, "MADV_HUGEPAGE", 14, raising=False)
    with pytest.raises(MemoryError, match="cannot be had: Cannot allocate memory"):
        empty_bytes(17 << 20)
