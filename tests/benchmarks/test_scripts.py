"""Each benchmark runs at its smallest size on a CPU; what it measures is not judged here."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kernel_cases import PEER, TINY, cases
from benchmarks.kernels import TOLERANCE, collect, deadlines, measure, reference, report, run_families
from benchmarks.measure import run_child

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def run(script: str, out: Path, *arguments: str) -> tuple[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--out", str(out), *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(out.read_text())


@pytest.mark.slow
def test_train_step_compares_ours_with_transformers(tmp_path: Path) -> None:
    arguments = ["--settle", "1", "--steps", "3", "--step-seconds", "0.1", "--ours", "mine: optim.beta2=0.9"]
    text, found = run(
        "train_step.py", tmp_path / "step.json", *arguments, "data.global_batch_size=128", "data.micro_batch_size=64"
    )
    ours, theirs = found["sides"]
    assert (ours["label"], theirs["label"], len(ours["step_s"]), len(ours["losses"])) == ("mine", "hf eager", 3, 4)
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], abs=1e-4)  # the same weights and batch
    assert "full step: best of ours / best peer = mine / hf eager = " in text


def test_profile_groups_a_step(tmp_path: Path) -> None:
    text, found = run("profile.py", tmp_path / "profile.json", "--settle", "1", "--steps", "1", "data.global_batch_size=128", "data.micro_batch_size=64")  # fmt: skip
    assert {"expert GEMMs", "attention", "projections", "output projection", "optimizer, norm and guard"} <= set(found["seconds"])
    assert "all counted FLOPs at the matmul rate" in text


@pytest.mark.parametrize("family", ["moe_mlp", "attention", "cross_entropy"])
def test_kernels_checks_every_backend_that_runs_here(family: str) -> None:
    for case in cases(family, TINY, CPU):
        expected = reference(case, CPU)
        rows = []
        for backend in case.backends:
            if case.why_not(backend) is None and not backend.startswith(PEER):
                rows.append({"case": case.title, "backend": backend} | measure(case, backend, expected, CPU, budget_s=0.0))
        assert len(rows) >= 2
        assert max(error for row in rows for error in row["errors"].values()) < 1e-5
        assert rows[0]["backend"] in report(family, rows, {"matmul_flops": 1.0, "copy_bytes_per_s": 1.0})


def test_kernels_times_what_has_no_reference(tmp_path: Path) -> None:
    run_families({"until": {"optimizer": time.time() + 60}, "done": [], "out": str(tmp_path / "rows")})
    first, *lines = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert first["machine"]["matmul_flops"] > 0
    rows = [line for line in lines if "case" in line]
    assert [row.get("error") for row in rows] == [None] * 4


CRASHES_AT_B = """
import json, os, sys
task = json.load(open(sys.argv[2]))
out = open(task["out"], "w", buffering=1)
for backend in "abc":
    if ["family", "case", backend] in task["done"]:
        continue
    out.write(json.dumps({"start": ["family", "case", backend]}) + "\\n")
    if backend == "b":
        os.abort()
    out.write(json.dumps({"family": "family", "case": "case", "backend": backend}) + "\\n")
"""


def test_kernels_names_what_there_was_no_time_for(tmp_path: Path) -> None:
    run_families({"until": {"pieces": 0.0}, "done": [], "out": str(tmp_path / "rows")})
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()][1:]
    assert {row["error"] for row in rows} == {"skipped: no time was left"}


def test_what_a_family_leaves_over_is_the_next_ones() -> None:
    until = deadlines(["attention", "moe_mlp"], 100.0, 65.0)
    assert list(until) == ["moe_mlp", "attention"]
    assert until == pytest.approx({"moe_mlp": 140.0, "attention": 165.0})


def test_kernels_goes_on_after_a_backend_that_crashes(tmp_path: Path) -> None:
    script = tmp_path / "crashes.py"
    script.write_text(CRASHES_AT_B)
    rows, _ = collect({"family": time.time() + 60}, tmp_path, str(script))
    assert [(row["backend"], row.get("error", "")[:15]) for row in rows] == [("a", ""), ("b", "exit status -6:"), ("c", "")]


def test_an_error_beyond_the_tolerance_is_marked() -> None:
    row = {
        "case": "c",
        "backend": "b",
        "flops": 1.0,
        "moved": 0.0,
        "forward_s": 1.0,
        "errors": {"out": 2 * TOLERANCE, "dx": float("nan")},
    }
    text = report("f", [row, {"case": "c", "backend": "broken", "error": "why"}], {"matmul_flops": 1.0, "copy_bytes_per_s": 1.0})
    assert "4.0e-02!" in text
    assert "dx nan!" in text or "nan!" in text
    assert "broken: why" in text


@pytest.mark.parametrize(
    ("code", "problem"),
    [("import os; os._exit(3)", "exit status 3"), ("raise KeyError('lost')", "KeyError: 'lost'"), ("import time; time.sleep(60)", "took more than 2 s")],
)  # fmt: skip
def test_a_candidate_that_dies_or_hangs_is_named_and_left(tmp_path: Path, code: str, problem: str) -> None:
    script = tmp_path / "candidate.py"
    script.write_text(
        f"import json, sys\ntask = json.load(open(sys.argv[2]))\nopen(task['out'], 'w').write('{{\"start\": 1}}\\n')\n{code}\n"
    )
    lines, said = run_child(str(script), {"name": "x y"}, tmp_path, 2.0)
    assert lines == [{"start": 1}]
    assert said is not None
    assert problem in said
