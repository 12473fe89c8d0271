"""A rank's connection to the hub of rank 0: lines of JSON, with time limits on everything."""

import json
import select
import socket
import threading
import time
from typing import Any


class Wire:
    """Sends from any thread; receives in one."""

    def __init__(self, address: str, port: int, timeout_s: float) -> None:
        """Raises:
        OSError: nobody answers there within `timeout_s`.
        """
        self._sock = socket.create_connection((address, port), timeout=timeout_s)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._lock = threading.Lock()
        self.own_address: str = self._sock.getsockname()[0]
        self.peer = address, port
        self.is_closed = False
        self._readable = select.poll()  # select.select takes no descriptor above 1023
        self._readable.register(self._sock, select.POLLIN)

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            OSError: the connection is closed, or the other side takes nothing.
        """
        with self._lock:
            self._sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next message.

        Raises:
            OSError: none came in time, or the connection was closed.
        """
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0 and not self.is_closed:
            message = self.poll(left)
            if message is not None:
                return message
        raise ConnectionError("closed" if self.is_closed else f"no answer in {timeout_s:g} s")

    def poll(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, or None: there was none within `timeout_s`, or the connection closed (`is_closed`)."""
        if b"\n" not in self._buffer and not self.is_closed and self._readable.poll(1000 * timeout_s):
            try:
                data = self._sock.recv(1 << 20)
            except OSError:
                data = b""
            self._buffer += data
            self.is_closed = not data
        elif self.is_closed:
            time.sleep(min(timeout_s, 0.1))
        if b"\n" not in self._buffer:
            return None
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()
        self.is_closed = True
