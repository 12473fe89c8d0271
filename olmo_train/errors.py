"""The errors a user can cause, and how a command line reports them."""

import os
import sys
import time
from collections.abc import Callable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: a signal stopped the run after it had saved; the same command continues it.
EXIT_HUNG = 76  # the watchdog ended this rank: it or another made no progress or gave no sign of life
EXIT_UNHEALTHY = 77  # a device or a node failed the health check; starting again makes sense without it
EXIT_CORRUPT = 78  # replicas, or a step taken twice, differ: a device computes wrongly


class ConfigError(ValueError):
    """A configuration that cannot be run; carries every problem found, not only the first."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            lines = [f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1)]
            super().__init__("\n".join([f"{len(self.problems)} problems in the configuration:", *lines]))


class ShardError(ValueError):
    """A token shard, its sidecar or its manifest that is not what it claims to be; names file and offset."""


class CheckpointError(RuntimeError):
    """A step folder that cannot be written, or is not whole and unchanged."""


class TrainingError(RuntimeError):
    """A run that must not go on: non-finite loss under `on_nonfinite=stop`, or too many skipped steps."""


class UnhealthyError(RuntimeError):
    """A device or a link that computes wrongly, found before training; `nodes` should not be used again."""

    exit_status = EXIT_UNHEALTHY

    def __init__(self, message: str, nodes: list[str]) -> None:
        super().__init__(message)
        self.nodes = nodes


class CorruptionError(RuntimeError):
    """Replicas, or one computation done twice, differ; `nodes` are suspected, none where nobody can tell."""

    exit_status = EXIT_CORRUPT

    def __init__(self, message: str, nodes: list[str]) -> None:
        super().__init__(message)
        self.nodes = nodes


class RendezvousError(RuntimeError):
    """Ranks that did not find each other; `nodes` are those of which none came."""

    def __init__(self, message: str, nodes: list[str] | None = None) -> None:
        super().__init__(message)
        self.nodes = nodes or []


class PeerError(RuntimeError):
    """Another rank ended, and this one cannot go on without it."""


class StoppedBySignal(SystemExit):
    """Training saved a checkpoint and left because a signal asked it to."""

    def __init__(self) -> None:
        super().__init__(EXIT_STOPPED)


SECONDS_TO_TELL = 5
"""How long other ranks wait before they end with a ConfigError: launchers end all with the first, and rank 0 may be late."""


def run_command(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run the entry point `main` on `argv` (without the program name) and return the exit status.

    Input errors print one message and give 2; errors of a run in progress give 1. Everything else keeps its traceback,
    because it is a bug. Of several ranks (torchrun's RANK) only the first tells of a ConfigError, which all of them find; a shard
    or a file that fails may have failed on one rank alone, so there every rank speaks, and says who it is.
    """
    rank = os.environ.get("RANK", "0")
    prefix = "error: " if rank == "0" else f"error on rank {rank}: "
    try:
        main(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        if rank == "0":
            print(f"{prefix}{error}", file=sys.stderr)
        else:
            time.sleep(SECONDS_TO_TELL)
        return EXIT_USAGE
    except ShardError as error:
        print(f"{prefix}{error}", file=sys.stderr)
        return EXIT_USAGE
    except (CheckpointError, TrainingError, RendezvousError, PeerError) as error:
        print(f"{prefix}{error}", file=sys.stderr)
        return EXIT_FAILED
    except (UnhealthyError, CorruptionError) as error:
        print(f"{prefix}{error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # `olmo ... | head` closed the pipe; not worth a traceback. Point stdout at nothing so that the flush at exit is quiet.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - lives until exit
    return 0
