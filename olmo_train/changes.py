"""What may change between two starts of one run, and what would make another run of it."""

from pathlib import Path

from olmo_train.config.train import TrainConfig
from olmo_train.conversion import by_dotted_name
from olmo_train.schema import read_yaml, to_plain

FREE = (
    "run_name", "run_dir", "stop_at_step", "gc_every", "parallel", "kernels", "checkpoint", "eval", "metrics", "faults", "load",
    "data.micro_batch_size", "data.verify", "data.prefetch", "optim.max_skips_in_a_row", "optim.on_nonfinite",
)  # fmt: skip
"""Values that may change; everything else decides weights, order or schedule and must stay."""


def changed_config(run: TrainConfig, saved: Path) -> list[str]:
    """Differences from the config the run began with that would make another run of it.

    Raises:
        ConfigError: `saved` cannot be read.
    """
    before, now = by_dotted_name(to_plain(read_yaml(saved, TrainConfig))), by_dotted_name(to_plain(run))
    problems = []
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and not any(f"{name}.".startswith(f"{free}.") for free in FREE):
            problems.append(
                f"{name}={now.get(name)}, but {saved.parent} began with {before.get(name)}; restore it, or start another "
                "run_name (with load.path to begin from a checkpoint)"
            )
    return problems
