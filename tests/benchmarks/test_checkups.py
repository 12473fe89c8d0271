"""The benchmark of watching the hardware, at its smallest size."""

import json
from pathlib import Path

from benchmarks.checkups import main as measure
from tests.distributed import spawn


def test_it_tells_what_each_check_costs_in_steps(tmp_path: Path) -> None:
    spawn(measure, 2, ["--steps", "1", "--micro-steps", "1", "--out", str(tmp_path / "out.jsonl"), "parallel.shard_size=1"])
    (line,) = (json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines())
    assert line["mesh"] == {"replicate": 2, "shard": 1}
    assert line["over_step"]["step"] == 1
    assert line["timed_collectives"] > 0
    assert set(line["seconds"]) == {
        "health check", "step", "replay", "comparing ranks", "replicas", "timing a step's collectives",
    }  # fmt: skip
