"""Rank 0's hub: what strangers say to its port harms nobody."""

import json
import socket
from collections.abc import Iterator

import pytest

from olmo_train.config.faults import FaultsConfig
from olmo_train.parallel.hub import Hub

HELLO = {"token": "ours", "rank": 0, "node": "n0", "probe": ["127.0.0.1", 1], "clock_offset_s": 0.0, "facts": {}}


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(2, FaultsConfig(), "ours", lambda _facts: [])
    yield hub
    hub.close()


def say(hub: Hub, words: bytes) -> bytes:
    """Say something to the hub; return its answer, empty if it closed the connection."""
    with socket.create_connection(("127.0.0.1", hub.port), timeout=30) as sock:
        try:
            sock.sendall(words)
            return sock.recv(1000)
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 100_000 + b"\n",
        b'{"ping": "\\ud800", "hello": 5}[]\n',
        b"5\n",
        json.dumps({"beat": ["step", 1, 1]}).encode() + b"\n",
        json.dumps({"hello": {**HELLO, "probe": 5}}).encode() + b"\n",
        json.dumps({"hello": {**HELLO, "rank": float("inf")}}).encode() + b"\n",
        b"x" * (17 << 20),
    ],
    ids=["http", "nested", "garbage", "number", "no hello", "no probe", "no rank", "endless"],
)
def test_a_stranger_is_sent_away_and_the_ranks_can_still_meet(hub: Hub, words: bytes) -> None:
    assert say(hub, words) == b""
    assert hub.arrived() == {}
    assert b"pong" in say(hub, b'{"ping": 1}\n')
    assert b"welcome" in say(hub, json.dumps({"hello": HELLO}).encode() + b"\n")
