"""`olmo explore run=runs/demo`: serve the explorer of a run to a browser on this machine."""

import socket
import sys
import webbrowser
from pathlib import Path
from threading import Thread

import uvicorn
from fastapi import FastAPI

from checkpoints.explore.config import ExploreConfig, find_problems, is_loopback
from checkpoints.explore.guard import Guard
from checkpoints.explore.server import build_app
from checkpoints.explore.session import Session
from olmo_train.errors import ConfigError, run_command
from olmo_train.schema import run_hydra

BACKLOG = 64
BYTES_PER_CHARACTER = 12
"""Of JSON, at most: a surrogate pair, spelt out."""
GRACE_S = 2
"""For what is being answered when the server is told to end."""
BODY_REST = 2**16
"""Bytes of a request besides text and prompt."""


def main(argv: list[str]) -> None:
    """Serve until interrupted."""
    run_hydra(explore, "explore", ExploreConfig, find_problems, argv)


def explore(config: ExploreConfig) -> None:
    """Open the run, listen, say where, and answer.

    Raises:
        ConfigError: there is no such run, or nobody can listen there.
    """
    session = Session(Path(config.run), config)
    with listen(config.host, config.port) as listener:
        address = url_of(config.host, listener.getsockname()[1])
        for line in session.notes():
            print(f"note: {line}", file=sys.stderr)
        if not is_loopback(config.host):
            print(
                f"warning: host={config.host} can be reached from other machines: whoever reaches it reads the training data and "
                "runs the model, without a password; host=127.0.0.1 is for this machine alone",
                file=sys.stderr,
            )
        print(f"{address}   (Ctrl-C ends it)", flush=True)
        if config.open_browser:
            webbrowser.open(address)
        Thread(target=session.warm, daemon=True).start()
        serve(build_app(session), session, listener)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address is not ours, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"port={port} of host={host} cannot be listened at: {reason}; give another port (0: any free one) or host"
        ) from None
    listener.set_inheritable(True)
    return listener


def server_of(app: FastAPI, session: Session) -> uvicorn.Server:
    """uvicorn around the app and its guard."""
    config = session.config
    max_body = BYTES_PER_CHARACTER * 2 * config.limits.text + BODY_REST
    guarded = Guard(app, {config.host, *config.names}, max_body, by_address=not is_loopback(config.host))
    settings = {"log_level": config.log_level.value, "server_header": False, "lifespan": "off", "ws": "none"}
    return uvicorn.Server(uvicorn.Config(guarded, timeout_graceful_shutdown=GRACE_S, **settings))


def serve(app: FastAPI, session: Session, listener: socket.socket) -> None:
    """Answer until interrupted."""
    try:
        server_of(app, session).run([listener])
    except KeyboardInterrupt:
        return


def url_of(host: str, port: int) -> str:
    """What a browser on this machine asks for."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
