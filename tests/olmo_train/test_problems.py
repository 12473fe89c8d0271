"""Each rule that values must satisfy together: the message names value, rule and remedy, and all come at once."""

from pathlib import Path

import pytest

from olmo_train.config.train import TrainConfig
from olmo_train.problems import find_problems
from olmo_train.schema import load_config
from olmo_train.train import find_all_problems

MOE = "model.moe"
CASES = [
    (["faults.hang_s=0"], 1, "faults.hang_s=0.0 must be positive"),
    (["faults.silent_s=-1"], 1, "faults.silent_s=-1.0 must be positive"),
    (["faults.straggler_frac=0"], 1, "faults.straggler_frac=0.0 must be positive"),
    (["faults.hang_at_start_s=20"], 1, "faults.hang_at_start_s=20.0 is less than faults.hang_s=300.0, but a start takes"),
    (["faults.replay_check_every=0"], 1, "faults.replay_check_every=0 must be positive"),
    (["faults.replica_check_every=0", "parallel.shard_size=1"], 2, "faults.replica_check_every=0 must be positive"),
    (
        ["faults.replica_check_every=5"],
        2,
        "faults.replica_check_every=5 compares replicas, but with parallel.shard_size=null all",
    ),
    (["faults.replay_tolerance=1"], 1, "faults.replay_tolerance=1.0 is not in [0, 1): it is a fraction of the norm"),
    (["faults.drill=[{kind: kill, step: 0}]"], 1, "faults.drill[0].step=0 must be positive"),
    (["faults.drill=[{kind: kill}, {kind: slow, seconds: 0}]"], 1, "faults.drill[1].seconds=0.0 must be positive"),
    (["faults.drill=[{kind: kill, rank: -1}]"], 1, "faults.drill[0].rank=-1 must not be negative"),
    (["faults.drill=[{kind: kill, rank: null}]"], 1, "faults.drill[0].rank=null and node=null: nobody would fail"),
    (["faults.drill=[{kind: hang, step: 9999999}]"], 1, "faults.drill[0].step=9999999, but the run ends after step"),
    (["model.d_model=130"], 1, "model.d_model=130 is not a multiple of model.n_heads=4; change one, or give model.d_head"),
    (["model.n_layers=0"], 1, "model.n_layers=0 must be positive"),
    (["model.d_head=33"], 1, "model.d_head=33 is odd; rotary positions turn pairs, so it must be even"),
    (["model.n_kv_heads=3"], 1, "model.n_kv_heads=3 does not divide model.n_heads=4"),
    (
        ["model.padded_vocab_size=4000"],
        1,
        "model.padded_vocab_size=4000 is less than model.vocab_size=4096; give at least as many rows",
    ),
    (["model.rope_yarn={factor: -1, original_seq_len: 8}"], 1, "model.rope_yarn.factor=-1.0 must be positive"),
    (["model.sliding_window=0"], 1, "model.sliding_window=0 must be positive"),
    (["model=tiny_dense", "model.d_ff=null"], 1, "model.d_ff=null, but there are dense layers; give the hidden width"),
    ([f"{MOE}.n_dense_layers=1"], 1, "model.d_ff=null, but there are dense layers"),
    (
        [f"{MOE}.n_dense_layers=4", "model.d_ff=8"],
        1,
        "model.moe.n_dense_layers=4 leaves no MoE layer of model.n_layers=4; use model.moe=null",
    ),
    ([f"{MOE}.top_k=17"], 1, "model.moe.top_k=17 is more than model.moe.n_experts=16; a token takes each expert at most once"),
    ([f"{MOE}.d_expert=0"], 1, "model.moe.d_expert=0 must be positive"),
    ([f"{MOE}.bias_update_rate=-1"], 1, "model.moe.bias_update_rate=-1.0 must not be negative"),
    (["data.seq_len=0"], 1, "data.seq_len=0 must be positive"),
    (["data.seq_len=1"], 1, "data.seq_len=1: an instance needs at least 2 tokens"),
    (
        ["data.micro_batch_size=300"],
        1,
        "data.micro_batch_size=300 tokens is not a multiple of data.seq_len=256; nearest: 256 or 512",
    ),
    (
        ["data.global_batch_size=1000000", "data.micro_batch_size=8192"],
        16,
        "data.global_batch_size=1000000 tokens is not a multiple of micro_batch_size * n_ranks = 8192 * 16 = 131072; nearest: 917504 or 1048576",
    ),
    (["data.global_batch_size=256", "data.micro_batch_size=256"], 2, "= 256 * 2 = 512; nearest: 512"),
    (["max_tokens=100"], 1, "max_tokens=100 is less than one step of data.global_batch_size=4096 tokens"),
    (["data.repetition_mask.max_period=0"], 1, "data.repetition_mask.max_period=0 must be positive"),
    (["data.repetition_mask={min_period: 3, max_period: 2}"], 1, "data.repetition_mask.max_period=2 is less than min_period=3"),
    (["data.prefetch=0"], 1, "data.prefetch=0 must be positive"),
    (
        ["data.sources.more={path: tests, weight: 1.0}"],
        1,
        "data.sources.demo.weight=null while more has a weight; give all sources a weight or none",
    ),
    (["data.sources.demo.weight=0"], 1, "data.sources.demo.weight=0.0 must be positive"),
    (["data.sources.demo.path=null"], 1, "data.sources.demo: give either path (a folder with a manifest) or files"),
    (["data.sources.demo.files=[x]"], 1, "data.sources.demo: give either path"),
    (
        ["data.sources.demo.path=/nowhere"],
        1,
        "data.sources.demo.path=/nowhere does not exist; write shards with `olmo data tokenize`",
    ),
    (
        ["data.sources.demo={path: null, files: [x], dtype: int8}"],
        1,
        "data.sources.demo.dtype=int8 is not one of uint8, uint16, uint32, uint64",
    ),
    (
        ["data.sources.demo={path: null, files: [x], dtype: uint16, select: a}"],
        1,
        "data.sources.demo.select=a goes with path; files are one source",
    ),
    (
        ["optim.lr=null"],
        1,
        "optim.lr=null takes the rate at which a loaded checkpoint stopped, and load is null; give a rate or load.path",
    ),
    (["optim.lr=-1"], 1, "optim.lr=-1.0 must be positive"),
    (["optim.max_grad_norm=0"], 1, "optim.max_grad_norm=0.0 must be positive"),
    (["optim.weight_decay=-0.1"], 1, "optim.weight_decay=-0.1 must not be negative"),
    (["optim.beta2=1"], 1, "optim.beta2=1.0 is not in [0, 1)"),
    (["optim.schedule.final_frac=2"], 1, "optim.schedule.final_frac=2.0 is not in [0, 1]"),
    (["optim.schedule.warmup_tokens=-1"], 1, "optim.schedule.warmup_tokens=-1 must not be negative"),
    (
        ["optim.schedule.warmup_tokens=999999999"],
        1,
        "optim.schedule.warmup_tokens=999999999 is not less than max_tokens=2621440; the run would end",
    ),
    (["optim.schedule.decay_tokens=100"], 1, "optim.schedule.decay_tokens=100 must be after warmup_tokens=131072"),
    (["optim.schedule.kind=wsd"], 1, "optim.schedule.decay_tokens=null: wsd needs the length of its final decay"),
    (
        ["optim.schedule={kind: wsd, warmup_tokens: 5, decay_tokens: 9999999}"],
        1,
        "(5 + 9999999 tokens) are more than max_tokens=2621440",
    ),
    (
        ["optim.weight_dtype=bfloat16"],
        1,
        "optim.weight_dtype=bfloat16 with parallel.compute_dtype=float32: float32 copies of rounded weights gain nothing; use",
    ),
    (
        ["optim.grad_dtype=bfloat16"],
        1,
        "optim.grad_dtype=bfloat16 with optim.weight_dtype=float32: gradients are added up in the weights' format or a finer one",
    ),
    (
        ["parallel={compute_dtype: bfloat16, reduce_dtype: bfloat16, reduce_every_micro_step: false}"],
        1,
        "optim.grad_dtype=float32 with parallel.reduce_dtype=bfloat16 and reduce_every_micro_step=false: whole gradients are added",
    ),
    (["optim.muon={n_iterations: 0}"], 1, "optim.muon.n_iterations=0 must be positive"),
    (["optim.muon={momentum: 1.0}"], 1, "optim.muon.momentum=1.0 is not in [0, 1)"),
    (["optim.muon={lr: -1}"], 1, "optim.muon.lr=-1.0 must be positive"),
    (["optim.muon={lr: 0.02}", "optim.lr=null"], 1, "optim.muon.lr=0.02 with optim.lr=null: the matrices' rate is a multiple"),
    (
        ["optim.muon={}", "optim.moment_dtype=int8"],
        1,
        "optim.moment_dtype=int8 with optim.muon: the momentum is float32 or bfloat16; use moment_dtype=bfloat16",
    ),
    (["optim.skip.min_history=500"], 1, "optim.skip.min_history=500 is not between 2 and optim.skip.window=128"),
    (["optim.skip.sigma=0"], 1, "optim.skip.sigma=0.0 must be positive"),
    (["parallel.shard_size=3"], 4, "parallel.shard_size=3 does not divide the number of ranks 4; it may be 1, 2, 4"),
    (["parallel.timeout_s=0"], 1, "parallel.timeout_s=0 must be positive"),
    (["parallel.threads_per_rank=0"], 1, "parallel.threads_per_rank=0 must be positive"),
    (["checkpoint.save_every=0"], 1, "checkpoint.save_every=0 must be positive"),
    (
        ["checkpoint.keep_local=0", "checkpoint.mirror=/m"],
        1,
        "checkpoint.keep_local=0: keep at least 1, or there is nothing to resume from",
    ),
    (
        ["checkpoint.keep_local=2"],
        1,
        "checkpoint.keep_local=2 deletes what a mirror holds, and checkpoint.mirror=null; give checkpoint.mirror",
    ),
    (
        ["run_dir=/r", "checkpoint.stage_dir=/r"],
        1,
        "checkpoint.stage_dir=/r must be a folder outside of run_dir=/r; give another, or null",
    ),
    (["run_dir=/r", "checkpoint.stage_dir=''"], 1, "checkpoint.stage_dir= must be a folder outside of run_dir=/r"),
    (
        ["run_dir=/r", "checkpoint.mirror=/r/copy"],
        1,
        "checkpoint.mirror=/r/copy must be a folder outside of run_dir=/r; give another",
    ),
    (
        ["checkpoint.mirror='s3://key:secret@host/b'"],
        1,
        "checkpoint.mirror holds credentials, which would be saved with every checkpoint",
    ),
    (["checkpoint.keep_ephemeral=0"], 1, "checkpoint.keep_ephemeral=0: keep at least 1, or there is nothing to resume from"),
    (["eval.eval_every=0"], 1, "eval.eval_every=0 must be positive"),
    (
        ["eval.tasks=[copa]", "eval.eval_every=null"],
        1,
        "eval.tasks is set, but with eval.eval_every=null they never run; give eval.eval_every",
    ),
    (["stop_at_step=0"], 1, "stop_at_step=0 must be positive"),
    (
        ["load.path=/nowhere"],
        1,
        "load.path=/nowhere is not a step folder (it has no manifest.json); e.g. runs/base/steps/step00001000",
    ),
    (["run_name=a/b"], 1, "run_name='a/b' must be a plain folder name; set run_dir to write elsewhere"),
]


def find(overrides: list[str], n_ranks: int) -> list[str]:
    run = load_config("train", TrainConfig, ["run_name=x", *overrides] if not overrides[0].startswith("run_name") else overrides)
    return [p for p in find_problems(run, n_ranks) if not p.startswith("data.sources.demo.path=shards/demo")]


@pytest.mark.parametrize(("overrides", "n_ranks", "message"), CASES, ids=lambda v: str(v)[:40])
def test_each_rule_has_its_message(overrides: list[str], n_ranks: int, message: str) -> None:
    found = find(overrides, n_ranks)
    assert any(message in problem for problem in found), found
    assert len(found) <= 3, found  # one mistake may break two rules, but does not set off everything


def test_a_good_run_has_no_problem() -> None:
    assert find(["run_name=x"], 2) == []


def test_a_run_without_sources_is_told_how_to_give_one(tmp_path: Path) -> None:
    run = load_config("train", TrainConfig, ["run_name=x"])
    run.data.sources = {}
    assert "data.sources is empty; give a source, e.g. data.sources.web.path=shards/web" in find_problems(run, 1)


def test_a_folder_of_transformers_is_told_how_to_become_a_step_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    found = find(["run_name=x", f"load.path={tmp_path}"], 1)
    assert any(f"`olmo convert {tmp_path} FOLDER --to step` makes one of it" in problem for problem in found), found


def test_all_problems_come_at_once() -> None:
    found = find(["run_name=x", "model.d_model=130", "optim.lr=-1", "data.micro_batch_size=300", "parallel.shard_size=3"], 4)
    assert len(found) == 5  # the micro-batch also spoils the global batch


def test_kernels_and_float8_are_checked_with_everything_else(shards: Path) -> None:
    words = ["run_name=x", f"data.sources.demo.path={shards}", "kernels.attention=flash", "kernels.moe_mlp=grouped_mm"]
    run = load_config("train", TrainConfig, [*words, "model.moe.d_expert=6", "parallel.prefetch=-1", "eval.eval_every=null"])
    assert find_all_problems(run) == [
        "parallel.prefetch=-1 must not be negative",
        "kernels.attention=flash is not one of auto, flash4, flash3, flash2, varlen, cudnn, sdpa, reference",
        "kernels.moe_mlp=grouped_mm: model.moe.d_expert=6 * 4 bytes is no multiple of 16; change it, or use loop",
    ]
