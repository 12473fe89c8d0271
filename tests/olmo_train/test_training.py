"""Training as a whole: the same numbers however the work is shared out, cut short, or computed."""

import json
import math
from pathlib import Path

import pytest
import torch

from olmo_train.checkpoint import read_manifest, read_state
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import open_sources
from olmo_train.data.order import DataOrder
from olmo_train.errors import ConfigError
from olmo_train.kernels.choose import REFERENCE
from olmo_train.model.init import init_params
from olmo_train.model.losses import load_balancing_loss, router_z_loss
from olmo_train.model.shapes import param_shapes
from olmo_train.model.transformer import Losses, Transformer
from olmo_train.optim.schedule import multiplier
from olmo_train.schema import load_config
from olmo_train.step_folder import list_steps
from tests.runs import losses, metrics, run_training, small, train_here, weights


def norms(run_dir: Path) -> list[float]:
    return [line["grad_norm"] for line in metrics(run_dir) if line["step"] > 0]


# ---- the step against a few lines of plain PyTorch -------------------------------------------------------------------------


def plain_training(overrides: list[str], n_steps: int) -> tuple[list[float], list[float]]:
    """(losses, gradient norms) of the definition: one process, no FSDP, no micro-batches, torch's own clipping and AdamW."""
    run = load_config("train", TrainConfig, overrides)
    model = Transformer(run.model, REFERENCE)
    init_params(model, param_shapes(run.model), run.model, run.seed)
    kinds = {s.name: s.kind for s in param_shapes(run.model)}
    groups = [
        {"params": [p for n, p in model.named_parameters() if (kinds[n] in run.optim.no_decay) == exempt], "weight_decay": decay}
        for exempt, decay in ((False, run.optim.weight_decay), (True, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(run.optim.beta1, run.optim.beta2), eps=run.optim.eps)
    order = DataOrder(open_sources(run.data, Path()), run.seed, run.data.seq_len, run.data.global_batch_size)
    all_losses, all_norms = [], []
    for step in range(1, n_steps + 1):
        rows = [
            torch.cat([torch.tensor(p.file.read(p.start, p.end).astype("int64")) for p in i.pieces]) for i in order.batch(step)
        ]
        ids = torch.stack(rows)
        labels = torch.full_like(ids, -100)
        labels[:, :-1] = ids[:, 1:]
        out = model(ids, labels)
        assert isinstance(out, Losses)
        loss = out.loss / (labels != -100).sum()
        total = loss
        if run.model.moe is not None and out.router is not None:
            moe, n = run.model.moe, ids.numel()
            total = total + moe.load_balancing_loss_weight * load_balancing_loss(
                out.router.counts, out.router.probs, n, n, moe.top_k
            )
            total = total + moe.router_z_loss_weight * router_z_loss(out.router.z, n)
        optimizer.zero_grad()
        total.backward()
        all_norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), run.optim.max_grad_norm or math.inf)))
        for group in optimizer.param_groups:
            group["lr"] = (run.optim.lr or 0) * multiplier(run.optim.schedule, step * run.data.global_batch_size, run.max_tokens)
        optimizer.step()
        all_losses.append(float(out.cross_entropy / (labels != -100).sum()))
    return all_losses, all_norms


@pytest.mark.parametrize(
    "model",
    [["model.moe.load_balancing_loss_weight=0.5", "model.moe.router_z_loss_weight=0.1"], ["model=tiny_dense", "model.d_ff=48"]],
)
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_run_is_plain_pytorch(shards: Path, tmp_path: Path, n_ranks: int, model: list[str]) -> None:
    overrides = small(shards, tmp_path / "run", "max_tokens=1280", "optim.max_grad_norm=0.5", "optim.skip=null", *model)
    overrides = [o for o in overrides if "moe" not in o or "tiny_dense" not in " ".join(model)]
    run_training(overrides, n_ranks)
    expected_losses, expected_norms = plain_training(overrides, 5)
    assert losses(tmp_path / "run") == pytest.approx(expected_losses, rel=1e-5)
    assert norms(tmp_path / "run") == pytest.approx(expected_norms, rel=1e-4)


# ---- the same whatever the layout ------------------------------------------------------------------------------------------

# Strong auxiliary losses, so that a wrong share of them would show.
LOUD = ["model.moe.load_balancing_loss_weight=0.5", "model.moe.router_z_loss_weight=0.1", "data.repetition_mask={max_count: 4}"]


COMPILED = ["parallel.compile=true", "parallel.compile_backend=aot_eager"]


def test_ranks_micro_batches_and_replicas_only_share_out_the_work(shards: Path, tmp_path: Path) -> None:
    layouts = {
        "base": (1, ["data.micro_batch_size=256"]),
        "accumulated": (1, ["data.micro_batch_size=32"]),
        "two ranks": (2, ["data.micro_batch_size=128"]),
        "two ranks accumulated": (2, ["data.micro_batch_size=16"]),
        "reduced once": (2, ["data.micro_batch_size=32", "parallel.reduce_every_micro_step=false"]),
        "kept whole": (2, ["data.micro_batch_size=64", "parallel.reshard_after_forward=false"]),
        "four ranks": (4, ["data.micro_batch_size=64"]),
        "two replicas of two": (4, ["data.micro_batch_size=32", "parallel.shard_size=2"]),
        "two ranks compiled": (2, ["data.micro_batch_size=64", *COMPILED]),
        "two replicas compiled": (
            2,
            ["data.micro_batch_size=64", "parallel.shard_size=1", *COMPILED, "parallel.recompute=selective"],
        ),
        "four replicas": (4, ["data.micro_batch_size=64", "parallel.shard_size=1"]),
    }
    for name, (n_ranks, overrides) in layouts.items():
        run_training(small(shards, tmp_path / name, "max_tokens=1280", *LOUD, *overrides), n_ranks)
    base = tmp_path / "base"
    assert any(json.loads(line)["masked_rows"] for line in (base / "data.jsonl").read_text().splitlines())
    for name in layouts:
        assert losses(tmp_path / name) == pytest.approx(losses(base), rel=2e-5), name
        assert norms(tmp_path / name) == pytest.approx(norms(base), rel=2e-4), name
        ours, theirs = ((tmp_path / n / "data.jsonl").read_text() for n in (name, "base"))
        assert ours == theirs  # the very same rows, checksums and masks
        for key in ("load_balancing_loss", "router_z_loss", "targets"):
            assert [m.get(key) for m in metrics(tmp_path / name)] == pytest.approx(
                [m.get(key) for m in metrics(base)], rel=1e-4
            ), (name, key)


@pytest.mark.parametrize("scope", ["local", "running"])
def test_the_other_balance_scopes_train_and_agree_where_they_must(shards: Path, tmp_path: Path, scope: str) -> None:
    """With one micro-batch on one rank all scopes are one; with more, they are not."""
    one, cut = ["data.micro_batch_size=256"], ["data.micro_batch_size=32"]
    scoped = f"model.moe.load_balancing_scope={scope}"
    run_training(small(shards, tmp_path / "global", "max_tokens=768", *LOUD, *one))
    run_training(small(shards, tmp_path / "one", "max_tokens=768", *LOUD, *one, scoped))
    run_training(small(shards, tmp_path / "cut", "max_tokens=768", *LOUD, *cut, scoped))
    assert losses(tmp_path / "one") == losses(tmp_path / "global")
    assert norms(tmp_path / "cut") != pytest.approx(norms(tmp_path / "global"), rel=1e-3)
    assert all(math.isfinite(x) for x in losses(tmp_path / "cut"))


@pytest.mark.parametrize(
    "override",
    [
        "parallel.recompute=full",
        "parallel.recompute=selective",
        "parallel={compile: true, compile_backend: aot_eager, compute_dtype: float32}",
        "parallel={compile: true, compile_backend: aot_eager, compute_dtype: float32, recompute: selective}",
        "kernels={attention: reference, moe_mlp: reference, cross_entropy: reference}",
        "kernels.moe_mlp=grouped_mm",
        "checkpoint.async_save=false",
        "data.document_masking=false",
    ],
)
def test_how_a_step_is_computed_changes_nothing(shards: Path, tmp_path: Path, override: str) -> None:
    run_training(small(shards, tmp_path / "base", "max_tokens=768"), 2)
    run_training(small(shards, tmp_path / "other", "max_tokens=768", override), 2)
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "base"), rel=1e-5)
    assert norms(tmp_path / "other") == pytest.approx(norms(tmp_path / "base"), rel=1e-4)


def test_bfloat16_trains_with_float32_master_weights(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "high"), 2)
    run_training(small(shards, tmp_path / "low", "parallel.compute_dtype=bfloat16"), 2)
    assert losses(tmp_path / "low") == pytest.approx(losses(tmp_path / "high"), rel=0.02)
    folder = list_steps(tmp_path / "low" / "steps")[-1][1]
    assert {t["dtype"] for t in read_manifest(folder)["tensors"]["model"].values()} == {"F32"}


@pytest.mark.parametrize(
    "options",
    [
        ["model.moe.n_shared_experts=1", "model.moe.n_dense_layers=1", "model.d_ff=32"],
        ["model.moe.gate=sigmoid", "model.moe.normalize_top_k=true", "model.moe.bias_update_rate=1e-2", "model.moe.load_balancing_loss_weight=0"],
        ["data.document_masking=true", "model.sliding_window=4", "model.full_attention_every=2", "model.n_kv_heads=2"],
        ["model=tiny_dense", "model.moe=null", "model.d_ff=48", "model.tie_embeddings=true", "model.norm=layer_norm_plain", "model.norm_order=pre",
         "model.qk_norm=none", "model.z_loss_weight=1e-3", "model.init=mitchell"],
    ],
    ids=["shared and dense", "bias balanced", "masked windows gqa", "olmo1"],
)  # fmt: skip
def test_every_kind_of_model_trains_alike_on_one_and_two_ranks(shards: Path, tmp_path: Path, options: list[str]) -> None:
    for name, n_ranks in (("one", 1), ("two", 2)):
        overrides = small(shards, tmp_path / name, "max_tokens=2560", *options)
        if "model.moe=null" in options:
            overrides = [o for o in overrides if not o.startswith("model.moe.")]
        run_training(overrides, n_ranks)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert losses(tmp_path / "one")[-1] < losses(tmp_path / "one")[0]


# ---- bad steps -------------------------------------------------------------------------------------------------------------


def poisoned(shards: Path, folder: Path, step: int) -> Path:
    """A checkpoint whose embedding holds a NaN, to train on from."""
    from safetensors.torch import load_file, save_file

    run_training(small(shards, folder / "clean", f"stop_at_step={step}"))
    source = folder / "clean/steps" / f"step{step:08d}"
    path = source / "model-00000-of-00001.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][3, 3] = float("nan")
    save_file(tensors, path)
    import hashlib

    manifest = read_manifest(source)
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (source / "manifest.json").write_text(json.dumps(manifest))
    return source


def test_a_nonfinite_loss_is_never_silent(shards: Path, tmp_path: Path) -> None:
    source = poisoned(shards, tmp_path, 5)
    skip = small(shards, tmp_path / "skip", f"load.path={source}", "optim.max_skips_in_a_row=4", "metrics.log_every=1")
    with pytest.raises(
        AssertionError, match=r"4 steps in a row were skipped by step 4 \(nonfinite\); optim\.max_skips_in_a_row=4"
    ):
        run_training(skip, 2)
    lines = metrics(tmp_path / "skip")
    assert [(line["loss"], line["skipped"]) for line in lines] == [(None, "nonfinite")] * 4
    assert [json.loads(x)["skipped"] for x in (tmp_path / "skip/data.jsonl").read_text().splitlines()] == ["nonfinite"] * 4
    stop = small(shards, tmp_path / "stop", f"load.path={source}", "optim.on_nonfinite=stop", "metrics.log_every=1")
    with pytest.raises(
        AssertionError,
        match=r"loss or gradient is not finite at step 1 \(optim\.on_nonfinite=stop\); no weight was changed by it",
    ):
        run_training(stop, 2)


def test_an_outlier_step_is_skipped_and_recorded(shards: Path, tmp_path: Path) -> None:
    """A learning rate that makes the loss jump: the steps the guard refuses leave no trace in the weights."""
    overrides = ["optim.skip={window: 8, min_history: 4, sigma: 0.5}", "metrics.log_every=1", "checkpoint.save_every=1"]
    run_training(small(shards, tmp_path / "run", *overrides, "optim.lr=1", "optim.schedule.warmup_tokens=2048"))
    lines = metrics(tmp_path / "run")
    skipped = [line["step"] for line in lines if line["skipped"]]
    assert skipped
    assert {line["skipped"] for line in lines} <= {None, "loss", "grad_norm"}
    for step in skipped:
        before, after = (
            {n: b for n, b in weights(tmp_path / "run", s).items() if not n.startswith("rng")} for s in (step - 1, step)
        )
        assert before == after
    state = read_state(tmp_path / "run/steps/step00000010")
    assert state["optimizer_steps"] == 10 - len(skipped)


# ---- evaluation and metrics ------------------------------------------------------------------------------------------------


def test_held_out_loss_is_the_models_loss_on_the_held_out_documents(shards: Path, tmp_path: Path) -> None:
    from checkpoints.load import load_model
    from checkpoints.opening import open_step_folder
    from olmo_train.data.loader import read_rows
    from olmo_train.data.order import HeldoutStream

    for name, n_ranks in (("one", 1), ("two", 2)):
        run_training(small(shards, tmp_path / name, "eval.eval_every=5", "eval.max_instances=1000"), n_ranks)
    results = {name: [m["eval"]["heldout"] for m in metrics(tmp_path / name) if "eval" in m] for name in ("one", "two")}
    assert [set(r) for r in results["one"]] == [{"a", "b", "all"}] * 3  # steps 0, 5 and 10
    assert results["one"][0]["all"]["loss"] == pytest.approx(math.log(97), rel=0.1)
    assert results["one"][2]["all"]["loss"] < results["one"][0]["all"]["loss"]
    for one, two in zip(results["one"], results["two"], strict=True):
        for source in one:
            assert two[source]["tokens"] == one[source]["tokens"]
            assert two[source]["loss"] == pytest.approx(one[source]["loss"], rel=1e-4)
    checkpoint = open_step_folder(tmp_path / "one/steps/step00000010")
    model, run = load_model(checkpoint, torch.device("cpu")), checkpoint.run
    assert run is not None
    (source,) = open_sources(run.data, Path())
    stream = HeldoutStream([f for f in source.files if f.entry.source == "a"], run.data.seq_len)
    rows = read_rows([stream.pieces(i) for i in range(stream.n)], run.data.seq_len, False, None)
    out = model(torch.from_numpy(rows.ids), torch.from_numpy(rows.labels))
    assert isinstance(out, Losses)
    expected = float(out.cross_entropy) / rows.n_targets
    assert results["one"][2]["a"]["loss"] == pytest.approx(expected, rel=1e-4)
    assert results["one"][2]["a"]["tokens"] == rows.n_targets
    assert results["one"][2]["a"]["bits_per_byte"] == pytest.approx(expected / math.log(2) / 2, rel=1e-4)  # two bytes a token


def test_every_step_has_a_line_and_every_field_its_meaning(shards: Path, tmp_path: Path) -> None:
    run_training(
        small(shards, tmp_path / "run", "metrics.log_every=4", "checkpoint.save_every=10", "model.z_loss_weight=1e-4"), 2
    )
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["tokens"] for line in lines] == [256 * s for s in range(1, 11)]
    assert all(line["targets"] == 16 * 15 for line in lines)
    assert all(line["z_loss"] > 0 and line["router_z_loss"] > 0 and line["load_balancing_loss"] >= 0.99 for line in lines)
    full = [line for line in lines if "tokens_per_s" in line]
    assert [line["step"] for line in full] == [4, 8, 10]
    for line in full:
        assert line["tokens_per_s"] == pytest.approx(2 * line["tokens_per_s_per_rank"])
        assert line["mfu"] > 0
        assert {"data", "forward_backward", "optimizer", "interval"} <= set(line["seconds"])
        layers = line["layers"]
        assert {k: len(v) for k, v in layers.items()} == dict.fromkeys(
            ("load_max_over_mean", "load_entropy", "dead_experts", "router_confidence"), 2
        )
        assert all(1 <= x <= 4 for x in layers["load_max_over_mean"])
        assert all(0 < x <= 1.000001 for x in layers["load_entropy"])
        assert all(0.25 <= x <= 1 for x in layers["router_confidence"])
    documented = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    for key in {k for line in lines for k in line} | set(full[0]["layers"]) | set(full[0]["seconds"]):
        assert f"`{key}`" in documented, key


def test_published_shards_train_without_a_step_before(shards: Path, tmp_path: Path) -> None:
    """`files` instead of `path`: the manifest is made in the run folder, and the tokens are the same."""
    run_training(small(shards, tmp_path / "own", "data.sources.demo.select=a"))
    words = [w for w in small(shards, tmp_path / "web") if not w.startswith("data.sources")]
    run_training([*words, f"data.sources.demo={{path: null, files: ['{shards}/a/*.npy'], dtype: uint16}}"])
    assert (tmp_path / "web/data/demo/manifest.json").exists()
    assert losses(tmp_path / "web")[0] == pytest.approx(losses(tmp_path / "own")[0], rel=0.02)  # no held-out split: other rows
    wrong = [
        *words[:-2],
        f"run_dir={tmp_path / 'bad'}",
        "run_name=bad",
        f"data.sources.demo={{path: null, files: ['{shards}/a/*.npy'], dtype: uint32}}",
    ]
    with pytest.raises(AssertionError, match="the file is truncated, or its dtype is not the one given|no multiple of 4"):
        run_training(wrong)


def test_a_config_error_on_the_way_in_is_the_users(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.sources\.demo: ids go up to 96, the model has 50 rows; set model\.vocab_size=97"
    ):
        train_here(small(shards, tmp_path / "run", "model.vocab_size=50"))
    assert not (tmp_path / "run").exists()
