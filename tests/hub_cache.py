"""A cache as `huggingface_hub` lays it out, and no network."""

import shutil
import socket
from pathlib import Path

import pytest


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Return a function that puts a folder into the cache: its files as blobs, with links to them."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def refuse(*args):
        raise AssertionError("the network is not to be used")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    def put(name: str, folder: Path, commit: str, refs: tuple[str, ...] = ("main",)) -> Path:
        model = cache / f"models--{name.replace('/', '--')}"
        snapshot = model / "snapshots" / commit
        for file in folder.rglob("*"):
            if file.is_file():
                blob = model / "blobs" / f"{commit[:4]}-{file.name}"
                link = snapshot / file.relative_to(folder)
                for parent in (blob.parent, link.parent):
                    parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, blob)
                link.symlink_to(blob)
        for ref in refs:
            (model / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
            (model / "refs" / ref).write_text(commit)
        return snapshot

    put.cache = cache
    return put
