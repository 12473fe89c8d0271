"""Run functions on several ranks. Processes are forked from a server that has imported torch once, so a rank starts in a moment."""

import multiprocessing as mp
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

mp_context = mp.get_context("forkserver")
mp_context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "olmo_train.train"])
TIMEOUT_S = 300.0


class RankFailed(AssertionError):
    """A rank ended with an exception or without a result; the message holds its traceback."""


def spawn(function: Callable[..., Any], n_ranks: int, *args: Any) -> list[Any]:
    """Call `function(*args)` on `n_ranks` processes with torchrun's environment; return the results in rank order.

    Raises:
        RankFailed: with the traceback of the first rank that failed.
    """
    port = _free_port()
    ranks = []
    for rank in range(n_ranks):
        ours, theirs = mp_context.Pipe()
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment |= {"WORLD_SIZE": str(n_ranks), "LOCAL_WORLD_SIZE": str(n_ranks)}
        process = mp_context.Process(target=_run, args=(theirs, environment, function, args), daemon=True)
        process.start()
        theirs.close()
        ranks.append((process, ours))
    results = [_result(connection) for _, connection in ranks]
    for process, _ in ranks:
        process.join(10)
        if process.is_alive():
            process.kill()
    for failure in results:
        if isinstance(failure, RankFailed) and "Connection" not in str(failure):  # the first error, not its echo on other ranks
            raise failure
    for failure in results:
        if isinstance(failure, RankFailed):
            raise failure
    return results


def _result(connection: Connection) -> Any:
    try:
        if connection.poll(TIMEOUT_S):
            return connection.recv()
        return RankFailed(f"no result after {TIMEOUT_S} s")
    except EOFError:
        return RankFailed("Connection closed without a result: the process was killed")


def _run(connection: Connection, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    try:
        result = function(*args)
    except SystemExit as error:
        result = error.code
    except BaseException:
        result = RankFailed(traceback.format_exc())
    try:
        connection.send(result)
    except Exception:
        connection.send(RankFailed(traceback.format_exc()))
    connection.close()
    sys.stdout.flush()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
