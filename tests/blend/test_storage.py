"""Blending on slow, full and forbidden storage."""

import os
import subprocess
import threading
import time

import pytest
import torch
from destinations import destination_of

import glue_cli.blend.to_files as blend_module
from glue_cli.blend.to_files import blend_files
from glue_cli.foundation.errors import ResourceError


def draw(seed, n=3_000_000):
    return {"w": torch.randn(n, generator=torch.Generator().manual_seed(seed))}


class SlowReads:
    """Stands for a remote disk: every read takes a while; notes how large reads are and what goes on meanwhile."""

    def __init__(self, monkeypatch):
        self.sizes, self.n_open, self.n_computing = [], 0, 0
        self.together, self.read_while_computing = 0, False
        self._lock, self._read, self._blend = threading.Lock(), blend_module.read_into, blend_module._Blending._blend
        monkeypatch.setattr(blend_module, "read_into", self.read)
        slow = self

        def blend(blending, block, inputs, out):
            with slow._counting("n_computing"):
                time.sleep(0.01)  # so that a read has the time to begin
                slow._blend(blending, block, inputs, out)

        monkeypatch.setattr(blend_module._Blending, "_blend", blend)

    def _counting(self, what):
        slow = self

        class Counting:
            def __enter__(self):
                with slow._lock:
                    setattr(slow, what, getattr(slow, what) + 1)
                    slow.together = max(slow.together, slow.n_open)
                    slow.read_while_computing |= slow.n_open > 0 and slow.n_computing > 0

            def __exit__(self, *error):
                with slow._lock:
                    setattr(slow, what, getattr(slow, what) - 1)

        return Counting()

    def read(self, descriptor, buffer, offset, path):
        self.sizes.append(len(buffer))
        with self._counting("n_open"):
            time.sleep(0.005)
            self._read(descriptor, buffer, offset, path)


def test_a_slow_disk_is_read_in_large_pieces_by_several_threads_while_others_compute(save, blend, monkeypatch):
    experts = [save(str(k), draw(k)) for k in range(3)]
    wanted = blend(experts, [0.2, 0.3, 0.5])["w"]
    slow = SlowReads(monkeypatch)
    found = blend(experts, [0.2, 0.3, 0.5], name="slow", memory_bytes=24 << 20, n_threads=3)["w"]
    assert torch.equal(found, wanted)
    assert min(slow.sizes) >= 1 << 20  # no read by pages
    assert slow.together >= 2 and slow.read_while_computing


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_reported_before_the_work_and_nothing_is_left(save, small_disk):
    experts = [save(str(k), draw(k)) for k in range(2)]
    before = [os.stat(expert.path).st_mtime_ns for expert in experts]
    kept = small_disk / "kept.safetensors"
    kept.write_bytes(b"precious")
    for output in (kept, small_disk / "deep" / "blend.safetensors"):
        with pytest.raises(ResourceError, match="No space left on device") as caught:
            blend_files(experts, [[0.5, 0.5]], destination_of(output, experts), lambda hashes: {})
        assert str(output) in caught.value.message and "free some space" in caught.value.hint
    assert [path.name for path in small_disk.iterdir()] == ["kept.safetensors"]
    assert kept.read_bytes() == b"precious"
    assert [os.stat(expert.path).st_mtime_ns for expert in experts] == before
