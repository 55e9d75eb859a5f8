"""What the tests of tables share."""

import socket

import pytest

from glue_cli.data import read_dataset
from glue_cli.spec.schema import DataSpec


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("the network is not to be used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def read(tmp_path):
    def call(split="train", root=tmp_path, cache=tmp_path / "cache", **settings):
        data = DataSpec(format="huggingface", root=".", **settings)
        return read_dataset(data, split, root=root, cache=cache)

    return call
