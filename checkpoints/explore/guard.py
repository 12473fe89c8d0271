"""What stands before the application: who may ask, how much, and the headers that keep a browser from running anything of ours.

It is plain ASGI, so that a client that leaves ends the stream it was given.
"""

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class TooLargeError(Exception):
    """A body beyond the limit."""


class Guard:
    """An application behind checks of host, origin, kind and size of what is asked."""

    def __init__(self, app: App, names: Iterable[str], max_body: int, by_address: bool = False) -> None:
        """`names`: hosts besides loopback. `max_body`: bytes. `by_address`: others may ask by any number of this machine, which,
        unlike a name, nobody elsewhere can point here."""
        self._app, self._max_body, self._by_address = app, max_body, by_address
        self._names = {name.lower() for name in names} | LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(_with_headers(send), *refusal)
            return
        body = _Body()
        out = _with_headers(send)

        async def answer(message: Message) -> None:
            if not body.is_too_large:  # else the application tells of a body that it could not read
                await out(message)

        with suppress(TooLargeError):
            await self._app(scope, self._counted(receive, body), answer)
        if body.is_too_large:
            await _refuse(out, 413, self._too_large())

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"]
        if len(hosts) != 1 or not self._is_known(hosts[0]):
            told = ", ".join(hosts)[:100] or "none"
            return 421, f"host {told!r} is not one of this server's names; the option `names` adds some"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, f"{scope['method']} is not answered: this server reads only"
        is_navigation = headers.get("sec-fetch-mode") == "navigate" and not scope["path"].startswith("/api/")
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not is_navigation:
            return 403, "a page of another site asked; only the explorer's own page may"
        if scope["method"] == "POST":
            return self._post_refusal(headers, hosts[0])
        return None

    def _post_refusal(self, headers: dict[str, str], host: str) -> tuple[int, str] | None:
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return 403, f"origin {origin[:100]!r} is not this server; only the explorer's own page may ask"
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            return 415, f"content-type is {kind[:100]!r}, must be application/json"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_body:
            return 413, self._too_large()
        return None

    def _too_large(self) -> str:
        return f"the request has more than {self._max_body} bytes; shorten the text, or raise limits.text"

    def _is_known(self, host: str) -> bool:
        """A name of ours, or loopback by number: an attacker's name that points here is neither."""
        parts = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]+)?", host)
        if parts is None:
            return False
        name = (parts[1] or parts[2]).lower()
        try:
            return str(ipaddress.ip_address(name)) in self._names or self._by_address
        except ValueError:
            return name in self._names

    def _counted(self, receive: Receive, body: "_Body") -> Receive:
        async def counted() -> Message:
            message = await receive()
            body.size += len(message.get("body", b""))
            if body.size > self._max_body:
                body.is_too_large = True
                raise TooLargeError
            return message

        return counted


@dataclass
class _Body:
    """What has come of a body of unknown length. The application reads all of it before it answers."""

    size: int = 0
    is_too_large: bool = False


def _with_headers(send: Send) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            theirs = [(name, value) for name, value in message.get("headers", []) if name.decode().lower() not in HEADERS]
            message = {**message, "headers": [*theirs, *ours]}
        await send(message)

    return add


async def _refuse(send: Send, status: int, text: str) -> None:
    body = json.dumps({"message": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
