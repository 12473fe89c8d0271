"""One rank as a task of srun: `srun ... python -m olmo_train.parallel.srun -m MODULE ARGS`

Takes rank and sizes from Slurm's environment and runs MODULE in this same process: with a wrapper process between, signals would
reach the ranks twice, or kill the wrapper while the rank still saves. MODULE's ranks find each other by `parallel/rendezvous.py`.
"""

import os
import runpy
import sys

from olmo_train.attempt import attempt_folder, open_standard_files, record, stop_when_asked
from olmo_train.errors import ConfigError, StoppedBySignal, run_command


def main(argv: list[str]) -> None:
    """Become the rank that Slurm's environment says, and run `-m MODULE ARGS`.

    Raises:
        ConfigError: srun did not start this process, or the words are others.
    """
    if len(argv) < 2 or argv[0] != "-m":
        raise ConfigError(f"expected -m MODULE ARGS, got {' '.join(argv) or 'nothing'}")
    os.environ.update(rank_environment(dict(os.environ)))
    for name in ("MASTER_ADDR", "MASTER_PORT"):  # of a shell in which something else was tried: the file of the attempt decides
        os.environ.pop(name, None)
    # Gloo would announce what the host's name resolves to, which on some systems is a loopback address.
    if interface := os.environ.get("OLMO_RENDEZVOUS_INTERFACE"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if attempt_folder() is not None:
        stop_when_asked()  # before torch is imported, which takes seconds: an early signal would kill without a word
    sys.argv = argv[1:]
    try:
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    except (Exception, StoppedBySignal) as error:  # e.g. a package that this node lacks: the module could not record it itself
        record(error)
        raise


def rank_environment(slurm: dict[str, str]) -> dict[str, str]:
    """RANK and its kin from Slurm's variables.

    Raises:
        ConfigError: they are not there.
    """
    missing = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID") if name not in slurm]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not set: start ranks with srun, as `olmo launch` does, or use `olmo launch local`"
        )
    counts = slurm.get("SLURM_STEP_TASKS_PER_NODE") or slurm.get("SLURM_TASKS_PER_NODE", slurm["SLURM_NTASKS"])
    return {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm.get("SLURM_STEP_NUM_TASKS", slurm["SLURM_NTASKS"]),
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_per_node(counts)[int(slurm["SLURM_NODEID"])]),
    }


def tasks_per_node(text: str) -> list[int]:
    """`4(x2),3` -> 4, 4, 3."""
    counts: list[int] = []
    for piece in text.split(","):
        count, _, times = piece.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts


if __name__ == "__main__":
    open_standard_files()
    raise SystemExit(run_command(main))
