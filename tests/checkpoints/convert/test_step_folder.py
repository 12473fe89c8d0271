"""A Hugging Face folder becomes a step folder that training, generation and conversion take as one of their own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints.convert import pieces as pieces_module
from checkpoints.convert.command import continue_words
from checkpoints.convert.hf_folder import HFOptions, write_hf
from checkpoints.convert.step_folder import StepFiles, write_step
from checkpoints.load import load_model, load_tokenizer
from checkpoints.opening import open_checkpoint, open_hf_folder, open_step_folder
from checkpoints.publish.assemble import AssembleOptions, assemble
from checkpoints.verify.steps import missing_rows
from olmo_train.checkpoint import read_manifest, read_state, verify_files
from olmo_train.data.loader import Loader, open_sources
from olmo_train.data.order import DataOrder
from olmo_train.errors import CheckpointError, ConfigError
from tests.checkpoints.convert.memory import Watched, most_memory
from tests.checkpoints.convert.models import MODELS, SEQ_LEN, random_params, write_model
from tests.runs import losses, run_training, small, weights, without_times
from tests.runs import metrics as metrics_of
from tests.texts import VOCAB, TextCorpus

transformers = pytest.importorskip("transformers")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- there and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "dtype"), [*((case, torch.float32) for case in MODELS), ("olmoe padded", torch.bfloat16)])
def test_hf_to_step_to_hf_is_the_same_folder(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    params = random_params(MODELS[case], dtype)
    write_hf(open_step_folder(write_model(tmp_path / "made", MODELS[case], params)), tmp_path / "hf", HFOptions(None, 80_000))
    assert write_step(open_hf_folder(tmp_path / "hf"), tmp_path / "step") == StepFiles(is_rebuilt=False, has_optimizer=False)
    step = open_step_folder(tmp_path / "step")
    assert set(step.weights.shapes) == set(params)
    for name, param in params.items():
        assert step.weights.dtype(name) == dtype
        assert torch.equal(step.weights.read(name), param), name
    manifest = read_manifest(tmp_path / "step")
    assert verify_files(tmp_path / "step", manifest) == []
    assert missing_rows(tmp_path / "step", manifest) == []
    write_hf(step, tmp_path / "again", HFOptions(None, 80_000))
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "hf")


def test_what_a_hf_config_does_not_hold_is_that_of_the_released_models(run: Path, tmp_path: Path) -> None:
    write_hf(open_checkpoint(str(run)), tmp_path / "hf")
    write_step(open_hf_folder(tmp_path / "hf"), tmp_path / "olmoe")
    checkpoint = open_step_folder(tmp_path / "olmoe")
    moe = checkpoint.model.moe
    assert moe is not None
    assert (moe.load_balancing_loss_weight, moe.router_z_loss_weight, checkpoint.model.z_loss_weight) == (0.01, 1.25e-4, 0.0)
    assert checkpoint.tokenizer == tmp_path / "olmoe/tokenizer.json"
    assert checkpoint.run is not None
    assert (checkpoint.run.data.sources, checkpoint.seq_len, checkpoint.run.run_name) == ({}, 16, "olmoe")
    state = read_state(tmp_path / "olmoe")
    assert (state["step"], state["tokens"], state["loss"], state["data"]["order"]) == (0, 0, None, None)
    provenance = json.loads((tmp_path / "olmoe/provenance.json").read_text())
    assert provenance["converted"]["from"] == str(tmp_path / "hf")
    step = write_model(tmp_path / "made", MODELS["olmo2"], random_params(MODELS["olmo2"]))
    write_hf(open_step_folder(step), tmp_path / "hf2")
    write_step(open_hf_folder(tmp_path / "hf2"), tmp_path / "olmo2")
    assert open_step_folder(tmp_path / "olmo2").model.z_loss_weight == 1e-5


def test_rows_the_tokenizer_does_not_reach_are_padding(corpus: TextCorpus, tmp_path: Path) -> None:
    model = replace(MODELS["olmoe"], vocab_size=VOCAB + 20)
    step = write_model(tmp_path / "made", model, random_params(model), tokenizer=corpus.tokenizer)
    write_hf(open_step_folder(step), tmp_path / "hf")
    write_step(open_hf_folder(tmp_path / "hf"), tmp_path / "step")
    found = open_step_folder(tmp_path / "step").model
    assert (found.vocab_size, found.padded_vocab_size) == (VOCAB, VOCAB + 20)


# ---- going on from it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("case", ["olmoe normalised", "olmo3"])
def test_pretraining_goes_on_from_a_folder_of_transformers(case: str, n_ranks: int, corpus: TextCorpus, tmp_path: Path) -> None:
    model = replace(MODELS[case], vocab_size=VOCAB)
    made = write_model(tmp_path / "made", model, random_params(model), tokenizer=corpus.tokenizer)
    write_hf(open_step_folder(made), tmp_path / "hf0")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf0", attn_implementation="eager")
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="40KB")
    (tmp_path / "hf/tokenizer.json").write_bytes(corpus.tokenizer.read_bytes())
    write_step(open_checkpoint(str(tmp_path / "hf")), tmp_path / "step")

    words = continue_words(tmp_path / "step", with_optimizer=False)
    assert words[1] == f"load.path={tmp_path / 'step'}"
    assert words[-1] == "load.optimizer_state=false"
    own = [word for word in words if not word.startswith(("run_name", "data."))]
    shape = [word for word in small(corpus.shards, tmp_path / "run") if not word.startswith("model")]
    shape = [word for word in shape if not word.startswith("data.sources")] + [f"data.sources.demo.path='{corpus.shards}'"]
    run_training([*own, *shape, "max_tokens=512", "optim.schedule.warmup_tokens=256"], n_ranks)

    run = open_step_folder(tmp_path / "run/steps/step00000002").run
    assert run is not None
    sources = open_sources(run.data, tmp_path / "run/data")
    order = DataOrder(sources, run.seed, run.data.seq_len, run.data.global_batch_size)
    rows = Loader(order, run.data, 0, 1).read(1)
    with torch.no_grad():
        logits = theirs(input_ids=torch.from_numpy(rows.ids)).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(rows.labels).flatten())
    assert losses(tmp_path / "run")[0] == pytest.approx(float(expected), rel=1e-5)


def test_optimizer_state_that_is_not_there_is_not_taken(run: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    write_hf(open_checkpoint(str(run)), tmp_path / "hf")
    write_step(open_hf_folder(tmp_path / "hf"), tmp_path / "step")
    words = small(
        corpus.shards,
        tmp_path / "again",
        f"load.path={tmp_path / 'step'}",
        f"model.vocab_size={VOCAB}",
        "max_tokens=512",
        "optim.schedule.warmup_tokens=256",
    )
    words = [*[w for w in words if not w.startswith("data.sources")], f"data.sources.demo.path='{corpus.shards}'"]
    with pytest.raises(AssertionError, match=r"load\.optimizer_state=true \(the default\), but .*/step holds no optimizer state"):
        run_training(words)
    run_training([*words, "load.optimizer_state=false"])
    assert len(losses(tmp_path / "again")) == 2


def test_what_is_generated_from_is_the_same_in_every_format(run: Path, tmp_path: Path) -> None:
    write_hf(open_checkpoint(str(run)), tmp_path / "hf")
    write_step(open_hf_folder(tmp_path / "hf"), tmp_path / "step")
    checkpoints = [open_checkpoint(str(path)) for path in (run, tmp_path / "hf", tmp_path / "step")]
    tokenizers = [load_tokenizer(checkpoint, None) for checkpoint in checkpoints]
    assert len({tokenizer.sha256 for tokenizer in tokenizers}) == 1
    ids = torch.tensor([tokenizers[0].encode("the cat sees a red house and")])
    with torch.no_grad():
        logits = [load_model(checkpoint, torch.device("cpu"))(ids) for checkpoint in checkpoints]
    assert torch.equal(logits[0], logits[1])  # type: ignore[arg-type]
    assert torch.equal(logits[0], logits[2])  # type: ignore[arg-type]


# ---- releases -------------------------------------------------------------------------------------------------------------


def release_of(run: Path, folder: Path, optimizer_state: bool = True, dtype: str | None = None) -> Path:
    assemble(run, 5, folder, AssembleOptions(1, dtype, optimizer_state, "apache-2.0", None, None))
    return folder


def test_a_release_gives_back_its_step_folder_and_training_goes_on_bit_for_bit(run: Path, tmp_path: Path) -> None:
    release = release_of(run, tmp_path / "release")
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    for step in (copy / "steps").glob("step*"):
        shutil.rmtree(step)
    target = copy / "steps/step00000005"
    assert write_step(open_hf_folder(release), target) == StepFiles(is_rebuilt=True, has_optimizer=True)
    original, rebuilt = bytes_of(run / "steps/step00000005"), bytes_of(target)
    assert set(rebuilt) == {*original, "tokenizer.json"}
    # private paths are cut from these, and the manifest says so
    assert {name for name in original if rebuilt[name] != original[name]} <= {"config.yaml", "provenance.json", "manifest.json"}
    assert verify_files(target, read_manifest(target)) == []

    config = (run / "config.yaml").read_text()
    (copy / "config.yaml").unlink()
    for name in ("metrics.jsonl", "data.jsonl"):
        lines = (run / name).read_text().splitlines(keepends=True)
        (copy / name).write_text("".join(line for line in lines if json.loads(line)["step"] <= 5))
    words = words_of(config, copy)
    run_training(words, 2)
    assert weights(copy, 10) == weights(run, 10)
    assert without_times(metrics_of(copy)) == without_times(metrics_of(run))


def words_of(config: str, run_dir: Path) -> list[str]:
    """The overrides that the fixture `run` was made with."""
    shards = next(line.split("path: ")[1] for line in config.splitlines() if "path: " in line)
    words = [f"data.sources.demo.path='{shards}'", f"model.vocab_size={VOCAB}", "eval.eval_every=5", "run_name=first"]
    return small(Path(shards), run_dir, *words, "checkpoint.save_log_spaced=true", f"run_dir={run_dir}")


def test_a_release_without_optimizer_state_or_rounded_gives_weights_and_says_so(run: Path, tmp_path: Path) -> None:
    plain = open_hf_folder(release_of(run, tmp_path / "plain", optimizer_state=False))
    written = write_step(plain, tmp_path / "a")
    assert written == StepFiles(is_rebuilt=False, has_optimizer=False, note="the release has no optimizer state")
    state = read_state(tmp_path / "a")
    assert (state["step"], state["tokens"]) == (5, 5 * 256)
    assert open_step_folder(tmp_path / "a").run == plain.run
    rounded = open_hf_folder(release_of(run, tmp_path / "rounded", dtype="bfloat16"))
    written = write_step(rounded, tmp_path / "b")
    assert written.note == "the release is in BF16, the run trained in F32: it cannot go on bit for bit"
    assert "optim" not in read_manifest(tmp_path / "b")["tensors"]


def test_a_damaged_release_is_told_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    release = release_of(run, tmp_path / "release")
    checkpoint, optim = open_hf_folder(release), release / "training/optim-00001-of-00002.safetensors"
    whole = optim.read_bytes()
    optim.unlink()
    optim.write_bytes(whole[:-1] + b"\x00")
    never = tmp_path / "never"
    with pytest.raises(CheckpointError, match=r"optim-00001-of-00002\.safetensors has SHA-256 .*, training/step\.json says"):
        write_step(checkpoint, never)
    optim.unlink()
    with pytest.raises(
        CheckpointError, match=r"optim-00001-of-00002\.safetensors is not there, and step\.json beside it names it"
    ):
        write_step(checkpoint, never)
    optim.write_bytes(whole)
    step = json.loads((release / "training/step.json").read_text())
    (release / "training/step.json").write_text(json.dumps({**step, "files": {**step["files"], "../x": {}}}))
    with pytest.raises(CheckpointError, match=r"'\.\./x' is not the name of a file; fetch the release again"):
        write_step(checkpoint, never)
    tensors = {"model": {**step["tensors"]["model"], "more": next(iter(step["tensors"]["model"].values()))}}
    (release / "training/step.json").write_text(json.dumps({**step, "tensors": tensors}))
    with pytest.raises(CheckpointError, match=r"training/step\.json has a tensor 'more', the release has not"):
        write_step(checkpoint, never)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "never"))] == []


# ---- refusals -------------------------------------------------------------------------------------------------------------


def test_a_step_folder_is_not_converted_to_itself(tmp_path: Path) -> None:
    step = write_model(tmp_path / "made", MODELS["olmo"], random_params(MODELS["olmo"]))
    with pytest.raises(ConfigError, match=r"made is a step folder already; cp -r copies it"):
        write_step(open_step_folder(step), tmp_path / "never")
    write_hf(open_step_folder(step), tmp_path / "hf")
    with pytest.raises(ConfigError, match="made exists already and is never overwritten"):
        write_step(open_hf_folder(tmp_path / "hf"), step)


def test_a_folder_that_breaks_while_it_is_read_leaves_nothing(tmp_path: Path) -> None:
    step = write_model(tmp_path / "made", MODELS["olmo"], random_params(MODELS["olmo"]))
    write_hf(open_step_folder(step), tmp_path / "hf", HFOptions(shard_bytes=10_000))
    checkpoint = open_hf_folder(tmp_path / "hf")
    for path in (tmp_path / "hf").glob("model-*"):
        path.unlink()
    checkpoint.weights._open.cache_clear()  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"cannot be read: .*; fetch the folder again"):
        write_step(checkpoint, tmp_path / "never")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "never"))] == []


def test_memory_holds_a_piece_of_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "PIECE_BYTES", 2 * 2**20)
    model = replace(MODELS["olmo2"], d_model=512, n_layers=4, vocab_size=10_000, d_ff=3000)
    params = {name: torch.ones(param.shape) for name, param in random_params(model).items()}
    size = sum(param.numel() * 4 for param in params.values())
    write_hf(open_step_folder(write_model(tmp_path / "made", model, params)), tmp_path / "hf", HFOptions(shard_bytes=10**7))
    del params
    checkpoint = open_hf_folder(tmp_path / "hf")
    watched = Watched(checkpoint.weights)
    peak = most_memory(lambda: write_step(replace(checkpoint, weights=watched), tmp_path / "step"))
    assert checkpoint.seq_len == SEQ_LEN
    assert size > 120e6
    assert watched.largest <= 2 * 2**20
    assert peak < 0.15 * size
