"""Other libraries, on any build of torch and without a network."""

import socket
import sys

import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Fail on whatever would go to the network."""

    def refuse(*args, **kwargs):
        raise AssertionError("something went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def missing(monkeypatch):
    """Make a library look as if it were not installed."""

    def hide(library):
        for name in [name for name in sys.modules if name == library or name.startswith(f"{library}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)

    return hide
