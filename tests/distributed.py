"""Run functions on several ranks. Processes are forked from a server that has imported torch once, so a rank starts in a moment."""

import multiprocessing as mp
import os
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

mp_context = mp.get_context("forkserver")
mp_context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "olmo_train.train"])
TIMEOUT_S = 300.0


class RankError(AssertionError):
    """A rank ended with an exception or without a result; the message holds its traceback."""


@dataclass(frozen=True)
class Rank:
    """A running rank, and where its result will come from."""

    process: Any
    connection: Connection


def spawn(function: Callable[..., Any], n_ranks: int, *args: Any) -> list[Any]:
    """Call `function(*args)` on `n_ranks` processes with torchrun's environment; return the results in rank order.

    Raises:
        RankError: with the traceback of the first rank that failed.
    """
    results = collect(start(function, n_ranks, *args))
    failures = [result for result in results if isinstance(result, RankError)]
    if failures:  # the first error, not its echo on other ranks
        raise next((failure for failure in failures if "Connection" not in str(failure)), failures[0])
    return results


def start(function: Callable[..., Any], n_ranks: int, *args: Any) -> list[Rank]:
    """Start `function(*args)` on `n_ranks` processes and return at once."""
    port = _free_port()
    ranks = []
    for rank in range(n_ranks):
        ours, theirs = mp_context.Pipe()
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment |= {"WORLD_SIZE": str(n_ranks), "LOCAL_WORLD_SIZE": str(n_ranks)}
        process = mp_context.Process(target=_run, args=(theirs, environment, function, args), daemon=True)
        process.start()
        theirs.close()
        ranks.append(Rank(process, ours))
    return ranks


def collect(ranks: list[Rank]) -> list[Any]:
    """Wait for all ranks; a rank that failed or was killed gives a RankError instead of a result."""
    results = [_result(rank.connection) for rank in ranks]
    for rank in ranks:
        rank.process.join(10)
        if rank.process.is_alive():
            rank.process.kill()
            rank.process.join()
    return results


def _result(connection: Connection) -> Any:
    try:
        if connection.poll(TIMEOUT_S):
            return connection.recv()
        return RankError(f"no result after {TIMEOUT_S} s")
    except EOFError:
        return RankError("Connection closed without a result: the process was killed")


def _run(connection: Connection, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    try:
        result = function(*args)
    except SystemExit as error:
        result = error.code
    except BaseException:
        result = RankError(traceback.format_exc())
    try:
        connection.send(result)
    except Exception:
        connection.send(RankError(traceback.format_exc()))
    connection.close()
    sys.stdout.flush()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
