"""Two checkpoints of any kind are compared tensor by tensor, and what differs is named."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints.convert.hf_folder import HFOptions, write_hf
from checkpoints.inspect.compare import compare
from checkpoints.inspect.diff import lines, main
from checkpoints.inspect.measures import to_json
from checkpoints.inspect.moments import MomentWeights
from checkpoints.opening import Checkpoint, open_checkpoint, open_step_folder
from olmo_train.checkpoint import Shard, commit, load_rows, read_manifest, write_rank
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.kernels.int8_states import dequantize
from tests.runs import run_training, small
from tests.texts import VOCAB, TextCorpus


def at(run: Path, step: int) -> Checkpoint:
    return open_checkpoint(str(run), step)


@pytest.fixture(scope="module")
def hf(newest: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Step 10 as Hugging Face folders, exact and in bfloat16."""
    folder = tmp_path_factory.mktemp("hf")
    write_hf(newest, folder / "exact")
    write_hf(newest, folder / "bf16", HFOptions(torch.bfloat16))
    return {"exact": folder / "exact", "bf16": folder / "bf16"}


def test_a_checkpoint_equals_itself(newest: Checkpoint) -> None:
    found = compare(newest, newest, with_optimizer=True)
    assert found.optimizer is not None
    for part in (found.weights, found.optimizer):
        assert part.is_equal
        assert part.is_rounded
        assert (part.all.norm_difference, part.all.relative, part.all.max_abs) == (0, 0, 0)
        assert part.all.cosine == pytest.approx(1, rel=1e-12)
        assert part.movers(5) == []
    assert found.config == []
    assert lines(found, 5)[3:] == ["The weights: equal, bit for bit.", "", "The moments: equal, bit for bit."]


def test_numbers_are_those_of_whole_tensors(run: Path, newest: Checkpoint) -> None:
    five = at(run, 5)
    found = compare(five, newest).weights
    matrices = {matrix.name: matrix.values for matrix in found.matrices}
    everything = []
    for name in newest.weights.shapes:
        a, b = five.weights.read(name).double(), newest.weights.read(name).double()
        everything.append((a.reshape(-1), b.reshape(-1)))
        if name == "blocks.1.attention.w_qkv.weight":
            values, x, y = matrices[f"{name}.v"], a[64:], b[64:]
        elif name == "blocks.0.moe.w_in":
            values, x, y = matrices[f"{name}[2].up"], a[2, 16:], b[2, 16:]
        elif name == "norm.weight":
            values, x, y = matrices[name], a, b
        else:
            continue
        assert values.n == x.numel()
        assert values.norm_a == pytest.approx(float(x.norm()), rel=1e-12)
        assert values.norm_b == pytest.approx(float(y.norm()), rel=1e-12)
        assert values.norm_difference == pytest.approx(float((y - x).norm()), rel=1e-12)
        assert values.relative == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-12)
        assert values.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), rel=1e-12)
        assert values.max_abs == float((y - x).abs().max())
    x, y = (torch.cat(side) for side in zip(*everything, strict=True))
    assert found.all.norm_difference == pytest.approx(float((y - x).norm()), rel=1e-12)
    assert found.all.n_different == int((x != y).sum())
    parts = [found.by_kind, found.by_layer]
    assert sum(values.n for values in parts[0].values()) == found.all.n
    assert set(parts[1]) == {0, 1}
    assert not found.is_equal
    movers = [matrix.values.relative for matrix in found.movers(1000)]
    assert movers == sorted(movers, key=lambda relative: -(relative or 0))
    assert len(movers) == len([m for m in found.matrices if m.values.n_different])


def test_another_layout_is_no_difference(newest: Checkpoint, hf: dict[str, Path]) -> None:
    """Hugging Face's names, and a tensor per expert."""
    found = compare(newest, open_checkpoint(str(hf["exact"])))
    assert found.weights.is_equal
    assert {field.name: field.a for field in found.config} == {  # what config.json of transformers cannot say
        "model.moe.load_balancing_loss_weight": 0.01, "model.moe.router_z_loss_weight": 1.25e-4,
    }  # fmt: skip


def test_another_number_format_is_told_from_other_numbers(newest: Checkpoint, hf: dict[str, Path], run: Path) -> None:
    rounded = open_checkpoint(str(hf["bf16"]))
    found = compare(newest, rounded)
    assert (found.a.dtypes, found.b.dtypes) == (["F32"], ["BF16"])
    assert (found.weights.is_equal, found.weights.is_rounded) == (False, True)
    assert "The weights: equal once the wider number format is rounded to the narrower one; not bit for bit." in lines(found, 3)
    other = compare(rounded, at(run, 5)).weights
    assert (other.is_equal, other.is_rounded) == (False, False)
    assert 0 < other.all.n_rounded < other.all.n_different == other.all.n


def test_one_changed_weight_is_found(newest: Checkpoint, tmp_path: Path) -> None:
    name = "blocks.0.moe.w_out"
    tensors = {key: newest.weights.read(key).clone() for key in newest.weights.shapes}
    tensors[name][3, 5, 7] += 0.5
    shards = {key: Shard(tensor, 0, tuple(tensor.shape)) for key, tensor in tensors.items()}
    folder, final = tmp_path / ".tmp", tmp_path / "steps/step00000010"
    final.parent.mkdir()
    write_rank(folder, 0, 1, {"model": shards})
    texts = {file: (newest.folder / file).read_text() for file in ("config.yaml", "state.json")}
    commit(folder, final, 1, {"step": 10, "kind": "permanent", "n_ranks": 1}, texts, threading.Event())
    found = compare(newest, open_step_folder(final)).weights
    assert [matrix.name for matrix in found.movers(10)] == [f"{name}[3]"]
    assert (found.all.n_different, found.all.max_abs) == (1, pytest.approx(0.5, abs=1e-6))
    with pytest.raises(ConfigError, match=r"--optimizer: .*step00000010 has no optimizer state; leave --optimizer out"):
        compare(newest, open_step_folder(final), with_optimizer=True)


@pytest.fixture(scope="module")
def wide(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Another architecture: no router, one layer more, a wider feed-forward, 8-bit moments."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    words = ["model=tiny_dense", "model.d_model=32", "model.d_ff=48", "model.n_layers=3", "model.n_heads=4"]
    words += [f"model.vocab_size={VOCAB}", f"data.sources.demo.path='{corpus.shards}'", "max_tokens=256"]
    words += ["optim.schedule.warmup_tokens=0", "optim.moment_dtype=int8"]
    kept = [w for w in small(corpus.shards, folder) if not w.startswith(("model", "max_tokens", "optim.s", "data.sources"))]
    run_training([*kept, *words])
    return open_checkpoint(str(folder))


def test_other_architectures_are_compared_where_they_agree(newest: Checkpoint, wide: Checkpoint) -> None:
    found = compare(newest, wide)
    assert "blocks.0.moe.w_in" in found.weights.only_in_a
    assert "blocks.2.attention.w_qkv.weight" in found.weights.only_in_b
    assert not found.weights.is_rounded
    compared = {matrix.name for matrix in found.weights.matrices}
    assert "blocks.1.attention.w_qkv.weight.q" in compared
    assert "embedding.weight" in compared
    fields = {field.name: (field.a, field.b) for field in found.config}
    assert fields["model.n_layers"] == (2, 3)
    assert fields["model.d_ff"] == (None, 48)
    assert fields["model.moe.n_experts"] == (4, None)
    text = "\n".join(lines(found, 3))
    assert "  only in A: 6 tensors: blocks.0.moe.w_in, " in text
    assert "  only in B: " in text


def test_tensors_of_another_shape_are_named_and_left_out(newest: Checkpoint, wide: Checkpoint) -> None:
    model = replace(newest.model, n_heads=2)
    found = compare(newest, replace(newest, model=model)).weights
    assert "blocks.0.attention.w_qkv.weight.k" in {
        matrix.name for matrix in found.matrices
    }  # q, k and v have the same rows still
    fewer = compare(newest, replace(newest, model=replace(newest.model, n_kv_heads=2))).weights
    assert "blocks.0.attention.w_qkv.weight" in {matrix.name for matrix in fewer.matrices}  # cut otherwise: compared whole

    class Narrow:
        shapes = {"norm.weight": (16,)}
        dtype = newest.weights.dtype

        def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
            return newest.weights.read(name)[:16]

    narrow = compare(newest, replace(newest, weights=Narrow()))
    assert [(m.name, m.shape_a, m.shape_b) for m in narrow.weights.shapes] == [("norm.weight", (32,), (16,))]
    text = "\n".join(lines(narrow, 3))
    assert "  another shape: norm.weight: 32 in A, 16 in B" in text
    assert "The weights: nothing can be compared, no tensor has the same name and shape in both." in text


def test_what_only_one_has_is_no_difference_of_the_rest(newest: Checkpoint) -> None:
    class Without:
        shapes = {name: shape for name, shape in newest.weights.shapes.items() if name != "norm.weight"}
        dtype, read = newest.weights.dtype, newest.weights.read

    found = compare(newest, replace(newest, weights=Without()))
    assert not found.weights.is_equal
    assert "The weights: equal where both have the tensor." in lines(found, 3)


def test_moments_are_compared_too(run: Path, newest: Checkpoint) -> None:
    found = compare(at(run, 5), newest, with_optimizer=True).optimizer
    assert found is not None
    assert not found.is_equal
    assert found.by_kind["exp_avg_sq/attention.q"].n == 2 * 32 * 32
    assert {matrix.layer for matrix in found.matrices} == {None, 0, 1}


def test_moments_of_eight_bits_are_what_they_stand_for(wide: Checkpoint) -> None:
    moments = MomentWeights.of(wide)
    name = "exp_avg/blocks.1.feed_forward.w_in.weight"
    assert not [key for key in moments.shapes if ".scale/" in key]
    read = moments.read(name)
    keys = [name, name.replace("/", ".scale/", 1)]
    saved = load_rows(wide.folder, read_manifest(wide.folder), "optim", dict.fromkeys(keys))
    assert saved[keys[0]].dtype == torch.uint8
    assert torch.equal(read, dequantize(saved[keys[0]], saved[keys[1]], signed=True))
    assert torch.equal(moments.read(name, (3, 9)), read[3:9])
    assert moments.dtype(name) == read.dtype == torch.float32
    assert 0 < float(read.abs().max()) < 1


def test_the_command_prints_and_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([f"{run}@5", str(run), "--top", "2", "--json", str(tmp_path / "diff.json"), "--optimizer"])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"A: {run}/steps/step00000005, F32, step 5, 1,280 tokens")
    assert out[3].startswith("The weights: different, in ")
    title = next(n for n, line in enumerate(out) if "matrices moved most" in line)
    assert len(out[title + 2 :][:2]) == 2
    values = json.loads((tmp_path / "diff.json").read_text())
    assert values["weights"]["matrices"][0]["name"] == "embedding.weight"
    assert values["b"]["step"] == 10
    main([str(run), str(run), "--top", "0"])
    assert "equal, bit for bit" in capsys.readouterr().out


def test_not_a_number_is_a_difference_and_null_in_json(newest: Checkpoint, tmp_path: Path) -> None:
    class Broken:
        shapes, dtype = newest.weights.shapes, newest.weights.dtype

        def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
            tensor = newest.weights.read(name, rows).clone()
            return tensor.fill_(torch.nan) if name == "norm.weight" else tensor

    found = compare(newest, replace(newest, weights=Broken()))
    assert found.weights.movers(1)[0].name == "norm.weight"
    assert "nan" in "\n".join(lines(found, 1))
    assert '"max_abs": null' in json.dumps(to_json(found), allow_nan=False)


def test_what_cannot_be_done_is_said_before_the_work(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--top=-1 must not be negative"):
        main([str(run), str(run), "--top", "-1"])
    with pytest.raises(ConfigError, match=r"--json=.*nowhere/x.json is in a folder that does not exist; give the name of a file"):
        main([str(run), str(run), "--json", str(tmp_path / "nowhere/x.json")])
    with pytest.raises(ConfigError, match=r"--json=.* is a folder; give the name of a file"):
        main([str(run), str(run), "--json", str(tmp_path)])


def test_a_damaged_file_is_named(copy: Path, run: Path) -> None:
    for file in (copy / "steps/step00000010").glob("model-*"):
        file.write_bytes(b"\0" * 10)
    with pytest.raises(CheckpointError, match="the model file cannot be read"):
        compare(at(run, 10), at(copy, 10))
