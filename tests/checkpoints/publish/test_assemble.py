"""A release holds what the run saved, says so truly, is the same every time, and tells nothing of the machine."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints.load import load_model
from checkpoints.opening import open_checkpoint, open_step_folder
from checkpoints.publish.assemble import AssembleOptions, assemble
from checkpoints.publish.signature import check_signature, read_public_key, write_key_pair
from checkpoints.publish.training_files import is_private, redact, source_folder
from checkpoints.release import UNLISTED, read_release_folder, weights_digest
from checkpoints.run_files import Evaluation, add_evaluation
from data_tools.inspect.run_order import open_run
from olmo_train.checkpoint import read_manifest
from olmo_train.config.train import TrainConfig
from olmo_train.errors import CheckpointError, ConfigError, ShardError
from olmo_train.schema import read_yaml, to_plain
from tests.checkpoints.publish.making import content, make, rewrite
from tests.runs import run_training, small
from tests.texts import VOCAB, TextCorpus

ROOT = Path(__file__).resolve().parents[3]
SHORT = (f"model.vocab_size={VOCAB}", "max_tokens=512", "optim.schedule.warmup_tokens=0")
"""A run of two steps."""
STATE = re.compile(r"(optim|rng)-\d{5}-of-00002\.safetensors")


@pytest.fixture(scope="module")
def release(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of step 10, with the optimizer state. Read only."""
    folder = tmp_path_factory.mktemp("releases") / "ten"
    make(run, 10, folder, optimizer_state=True)
    return folder


def tensors_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Every tensor, read from the files by the description of the format alone."""
    found = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            a, b = entry["data_offsets"]
            sha256 = hashlib.sha256(data[start + a : start + b]).hexdigest()
            found[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "file": path.name, "sha256": sha256}
    return found


# ---- what is in it ----------------------------------------------------------------------------------------------------


def test_the_same_run_and_step_give_the_same_bytes(run: Path, release: Path, tmp_path: Path) -> None:
    make(run, 10, tmp_path / "again", optimizer_state=True)
    again, first = content(tmp_path / "again"), content(release)
    assert again.keys() == first.keys()
    assert [name for name in first if first[name] != again[name]] == []


def test_the_manifest_lists_every_file_with_its_hash(release: Path) -> None:
    manifest, files = read_release_folder(release), content(release)
    assert files.keys() - set(UNLISTED) == manifest.files.keys()
    for name, entry in manifest.files.items():
        assert entry == {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}, name
    assert {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md",
        "plots/loss.png", "plots/heldout.png", "plots/lr.png", "plots/experts.png", "evaluations.json", "training/config.yaml",
        "training/state.json", "training/provenance.json", "training/step.json", "training/metrics.jsonl", "training/data.jsonl",
        "training/data/demo/manifest.json",
        *(f"training/{group}-{rank:05d}-of-00002.safetensors" for group in ("optim", "rng") for rank in (0, 1)),
    } == manifest.files.keys()  # fmt: skip


def test_the_manifest_tells_of_the_tensors_what_the_files_hold(release: Path) -> None:
    manifest, found = read_release_folder(release), tensors_of(release)
    assert manifest.tensors == found
    assert manifest.weights_sha256 == weights_digest(found)


def test_the_facts_are_those_of_the_step(run: Path, release: Path) -> None:
    manifest, state = read_release_folder(release), json.loads((run / "steps/step00000010/state.json").read_text())
    assert (manifest.name, manifest.run, manifest.stage, manifest.step) == ("stage1-step10-tokens0B", "first", 1, 10)
    assert (manifest.tokens, manifest.loss, manifest.data["order"]) == (2560, state["loss"], state["data"]["order"])
    assert manifest.data["next_position"] == 160
    assert (manifest.architecture, manifest.dtype, manifest.is_exact) == ("OlmoeForCausalLM", "float32", True)
    assert manifest.parameters["total"] == sum(torch.Size(entry["shape"]).numel() for entry in manifest.tensors.values())
    starts = json.loads((run / "provenance.json").read_text())["starts"]
    assert (manifest.code, manifest.parent, manifest.has_optimizer) == (starts[-1]["git"], None, True)
    line = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert {row["label"]: row["metrics"] for row in manifest.evaluations} == line["eval"]["heldout"]
    assert {row["suite"] for row in manifest.evaluations} == {"heldout"}


def test_transformers_computes_what_our_model_computes(run: Path, release: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(release, dtype="auto").eval()
    ours = load_model(open_step_folder(run / "steps/step00000010"), torch.device("cpu"))
    ids = torch.randint(VOCAB, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=0, atol=2e-5)
    tokenizer = AutoTokenizer.from_pretrained(release)
    assert tokenizer.decode(tokenizer("the cat sees a bird")["input_ids"]) == "the cat sees a bird"


def test_our_own_commands_open_a_release_as_the_run_it_comes_from(run: Path, release: Path) -> None:
    opened, step = open_checkpoint(str(release)), open_step_folder(run / "steps/step00000010")
    assert (opened.step, opened.model, opened.seq_len, opened.state) == (10, step.model, 16, step.state)
    for name in step.weights.shapes:
        assert torch.equal(opened.weights.read(name), step.weights.read(name)), name


def test_metrics_and_ledger_end_with_the_step(run: Path, tmp_path: Path) -> None:
    make(run, 5, tmp_path / "five")
    for name in ("metrics.jsonl", "data.jsonl"):
        part, whole = (tmp_path / "five/training" / name).read_bytes(), (run / name).read_bytes()
        assert whole.startswith(part)
        assert json.loads(part.splitlines()[-1])["step"] == 5
        assert json.loads(whole[len(part) :].splitlines()[0])["step"] == 6
    evaluations = json.loads((tmp_path / "five/evaluations.json").read_text())
    assert {row["step"] for row in evaluations} == {0, 5}


def test_step_zero_is_a_release_too(run: Path, tmp_path: Path) -> None:
    manifest = make(run, 0, tmp_path / "zero")
    assert (manifest.name, manifest.tokens, manifest.loss) == ("stage1-step0-tokens0B", 0, None)
    assert len(manifest.evaluations) == 3
    files = content(tmp_path / "zero")
    assert json.loads(files["training/metrics.jsonl"])["step"] == 0
    assert "training/data.jsonl" not in files
    assert not any(name.startswith("plots/") for name in files)


def test_a_run_without_metrics_is_published_without_them(copy: Path, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "data.jsonl"):
        (copy / name).unlink()
    manifest = make(copy, 10, tmp_path / "out")
    assert not [name for name in manifest.files if name.endswith((".jsonl", ".png"))]
    assert manifest.evaluations == []
    card = (tmp_path / "out/README.md").read_text()
    assert "The run's metrics.jsonl is gone, so there are no curves." in card
    assert "| Steps that changed nothing | not known: the run has no metrics.jsonl |" in card


def test_evaluations_made_later_are_in_and_later_steps_are_not(copy: Path, tmp_path: Path) -> None:
    add_evaluation(
        copy, Evaluation(5, "lm_eval", "piqa", {"acc": 0.5, "acc_norm": float("nan")}, {"file": "/home/me/tasks.json"})
    )
    add_evaluation(copy, Evaluation(10, "lm_eval", "piqa", {"acc": 0.75}))
    manifest = make(copy, 5, tmp_path / "out")
    (row,) = [row for row in manifest.evaluations if row["suite"] == "lm_eval"]
    assert row == {
        "suite": "lm_eval",
        "label": "piqa",
        "metrics": {"acc": 0.5, "acc_norm": None},
        "settings": {"file": "tasks.json"},
    }
    assert "0.75" not in (tmp_path / "out/evaluations.json").read_text()
    json.loads((tmp_path / "out/release.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_the_optimizer_state_is_the_steps_own(run: Path, release: Path) -> None:
    step, manifest = run / "steps/step00000010", read_release_folder(release)
    assert (release / "training/step.json").read_bytes() == (step / "manifest.json").read_bytes()
    listed = read_manifest(step)["files"]
    names = [name for name in listed if STATE.fullmatch(name)]
    assert len(names) == 4
    for name in names:
        assert (release / "training" / name).read_bytes() == (step / name).read_bytes()
        assert manifest.files[f"training/{name}"] == listed[name]
        assert (release / "training" / name).stat().st_ino == (step / name).stat().st_ino


def test_where_files_cannot_be_linked_they_are_copied(
    run: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    make(run, 10, tmp_path / "out", optimizer_state=True)
    assert content(tmp_path / "out") == content(release)


def test_without_the_optimizer_state_its_files_stay_at_home(run: Path, tmp_path: Path) -> None:
    manifest = make(run, 10, tmp_path / "out")
    assert not manifest.has_optimizer
    assert [name for name in manifest.files if "safetensors" in name] == ["model.safetensors"]


def test_rounded_weights_are_told(run: Path, release: Path, tmp_path: Path) -> None:
    manifest = make(run, 10, tmp_path / "out", dtype="bfloat16")
    assert (manifest.dtype, manifest.is_exact) == ("bfloat16", False)
    assert {entry["dtype"] for entry in tensors_of(tmp_path / "out").values()} == {"BF16"}
    assert manifest.weights_sha256 == weights_digest(tensors_of(tmp_path / "out")) != read_release_folder(release).weights_sha256
    assert "The weights are rounded or widened to bfloat16" in (tmp_path / "out/README.md").read_text()
    same = make(run, 10, tmp_path / "same", dtype="float32")
    assert same.is_exact
    assert same.weights_sha256 == read_release_folder(release).weights_sha256


def test_a_release_is_signed_as_it_is(run: Path, tmp_path: Path) -> None:
    write_key_pair(tmp_path / "key")
    make(run, 1, tmp_path / "out", sign=tmp_path / "key")
    signature = (tmp_path / "out/release.json.sig").read_bytes()
    trusted = [read_public_key(tmp_path / "key.pub")]
    assert check_signature((tmp_path / "out/release.json").read_bytes(), signature, trusted, "out").is_trusted
    assert "release.json.sig" not in read_release_folder(tmp_path / "out").files


# ---- the checkpoint before --------------------------------------------------------------------------------------------


def test_the_release_before_is_the_parent(run: Path, release: Path, tmp_path: Path) -> None:
    before = read_release_folder(release)
    manifest = make(run, 5, tmp_path / "out", parent=before)
    assert manifest.parent == {
        "name": "stage1-step10-tokens0B", "step": 10, "tokens": 2560, "weights_sha256": before.weights_sha256,
    }  # fmt: skip


def test_the_first_release_of_a_run_names_what_was_loaded(run: Path, release: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    base = Path(shutil.copytree(run / "steps/step00000010", tmp_path / "base"))
    words = [*SHORT, f"load.path='{base}'", "checkpoint.save_log_spaced=true", f"data.sources.demo.path='{corpus.shards}'"]
    run_training(small(corpus.shards, tmp_path / "second", *words))
    loaded = {"name": "base", "step": 10, "tokens": 2560, "weights_sha256": read_release_folder(release).weights_sha256}
    first = make(tmp_path / "second", 0, tmp_path / "zero", stage=2)
    assert (first.name, first.parent) == ("stage2-step0-tokens0B", loaded)
    assert first.weights_sha256 == loaded["weights_sha256"]
    state = base / "state.json"
    text = json.loads(state.read_text())
    rewrite(base, "state.json", json.dumps(text | {"tokens": 1}))  # another checkpoint under the same name
    unknown = loaded | {"tokens": None, "weights_sha256": None}
    assert make(tmp_path / "second", 0, tmp_path / "other").parent == unknown
    shutil.rmtree(base)
    assert make(tmp_path / "second", 0, tmp_path / "gone").parent == unknown
    assert "the weights and moments of another checkpoint" in (tmp_path / "gone/README.md").read_text()


# ---- nothing private --------------------------------------------------------------------------------------------------


def test_no_file_tells_where_the_run_lay(run: Path, release: Path, corpus: TextCorpus) -> None:
    for name, data in content(release).items():
        for place in (run.parent, corpus.shards.parent, Path.home(), ROOT):
            assert str(place).encode() not in data, f"{name} has {place}"


def test_but_for_paths_the_configuration_is_the_runs(run: Path, release: Path) -> None:
    ours, theirs = (to_plain(read_yaml(file, TrainConfig)) for file in (run / "config.yaml", release / "training/config.yaml"))
    assert (theirs["run_dir"], theirs["data"]["sources"]["demo"]["path"]) == ("runs/first", "data/demo")
    theirs["run_dir"], theirs["data"]["sources"]["demo"]["path"] = ours["run_dir"], ours["data"]["sources"]["demo"]["path"]
    assert theirs == ours
    listed, published = read_manifest(run / "steps/step00000010")["files"], read_release_folder(release).files
    changed = [name for name in listed if f"training/{name}" in published and listed[name] != published[f"training/{name}"]]
    assert set(changed) <= {"config.yaml", "provenance.json"}
    assert "config.yaml" in changed


def test_with_the_shards_beside_their_manifests_the_order_is_the_runs(
    release: Path, corpus: TextCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Path(shutil.copytree(release / "training", tmp_path / "training"))
    shutil.copytree(corpus.shards, training / "data/demo", dirs_exist_ok=True)
    monkeypatch.chdir(training)
    _, order = open_run(".")
    assert order.key == read_release_folder(release).data["order"]
    assert len(order.documents(order.batch(10, 0, 1)[0])) > 0


def test_a_run_of_relative_paths_is_published_verbatim(
    copy: Path, corpus: TextCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink(corpus.shards, tmp_path / "my shards")
    step = copy / "steps/step00000010"
    text = (step / "config.yaml").read_text()
    text = re.sub(r"run_dir: .*", "run_dir: runs/first", re.sub(r"path: .*", "path: my shards", text))
    rewrite(step, "config.yaml", text)
    rewrite(
        step, "provenance.json", (step / "provenance.json").read_text().replace('"command": "', '"command": "a=b/c d=[e/*.npy] ')
    )
    monkeypatch.chdir(tmp_path)
    manifest = make(copy, 10, tmp_path / "out")
    for name in ("config.yaml", "state.json"):
        assert (tmp_path / "out/training" / name).read_bytes() == (step / name).read_bytes()
        assert manifest.files[f"training/{name}"] == read_manifest(step)["files"][name]


COMMAND = (
    "olmo train run_name=a data.sources.x.path=/mnt/x 'data.sources.y.path='\"'\"'/mnt/y z'\"'\"'' "
    "'data.sources.w={files: [/mnt/w/*.npy], dtype: uint16}' load.path=../b/steps/step00000001 optim.lr=1/2 ~/cfg wandb=https://me:word@host/x"
)


def test_a_command_keeps_its_words_and_loses_its_paths(copy: Path, tmp_path: Path) -> None:
    step = copy / "steps/step00000010"
    starts = json.loads((step / "provenance.json").read_text())["starts"]
    unreadable = {**starts[0], "command": "olmo train load.path='/mnt/x"}
    rewrite(step, "provenance.json", json.dumps({"starts": [unreadable, {**starts[0], "command": COMMAND, "home": "/home/me"}]}))
    make(copy, 10, tmp_path / "out")
    first, second = json.loads((tmp_path / "out/training/provenance.json").read_text())["starts"]
    assert first["command"] == "redacted"
    assert second.pop("command") == (
        "olmo train run_name=a data.sources.x.path=redacted data.sources.y.path=redacted data.sources.w=redacted load.path=redacted "
        "optim.lr=1/2 redacted wandb=redacted"
    )
    assert second.pop("home") == "me"
    assert second == {name: value for name, value in starts[0].items() if name != "command"}


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("/home/me/shards", "shards"), ("~/shards/", "shards"), ("~me", "redacted"), ("../../me/x", "x"), ("..", "redacted"),
        ("C:\\me\\x", "x"), ("C:\\", "redacted"), ("\\\\host\\x", "x"), ("file:///home/me/x", "x"), ("/", "redacted"),
        ("s3://key:secret@bucket/x", "x"), ("https://me:word@host", "redacted"), ("a/../../b", "b"),
    ],
)  # fmt: skip
def test_private_values_lose_their_folders(value: str, public: str) -> None:
    assert is_private(value)
    assert redact({"a": [value, 1, None]}) == {"a": [public, 1, None]}


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("hf pretrained=/home/me/x,dtype=auto  limit=5", "hf pretrained=redacted  limit=5"),
        ("cannot load /usr/lib/me.so: no file", "cannot load redacted no file"),
        ("cannot load '/home/my name/x.so'", "redacted"),
        ("see ~me/x and ../y or https://me:word@host/x", "see redacted and redacted or redacted"),
    ],
)
def test_a_text_loses_the_words_with_paths(text: str, public: str) -> None:
    assert redact([text]) == [public]


@pytest.mark.parametrize(
    "value",
    [
        "shards/web",
        "web",
        "",
        "1/2",
        "a..b",
        "s3://bucket/x",
        "cosine",
        "[x]",
        "me@host",
        "needs sm_90 / sm_100, ~5 GB, and/or x: y",
        "path=s3://bucket/x",
    ],
)
def test_other_values_stay(value: str) -> None:
    assert not is_private(value)
    assert redact(value) == value


@pytest.mark.parametrize(
    ("name", "folder"),
    [("web", "web"), ("my web", "my web"), ("..", "%2E."), ("../x", "%2E.%2Fx"), (".git", "%2Egit"), ("a/b", "a%2Fb")],
)
def test_the_folder_of_a_source_is_one_plain_name(name: str, folder: str) -> None:
    assert source_folder(name) == folder


def test_manifests_of_published_shards_lose_their_folders(corpus: TextCorpus, tmp_path: Path) -> None:
    """Sources given by `files` are described in the run folder, by absolute paths."""
    run = tmp_path / "third"
    files = [
        "data.sources.demo.path=null",
        f"data.sources.demo.files=['{corpus.shards}/*/*.npy']",
        "data.sources.demo.dtype=uint16",
    ]
    run_training(small(corpus.shards, run, *SHORT, *files))
    make(run, 2, tmp_path / "out")
    original, public = (
        file.read_text() for file in (run / "data/demo/manifest.json", tmp_path / "out/training/data/demo/manifest.json")
    )
    assert str(corpus.shards) in original
    assert str(corpus.shards) not in public
    assert json.loads(public)["fingerprint"] == json.loads(original)["fingerprint"]
    assert [Path(entry["path"]).name for entry in json.loads(original)["files"]] == [
        entry["path"] for entry in json.loads(public)["files"]
    ]
    assert read_yaml(tmp_path / "out/training/config.yaml", TrainConfig).data.sources["demo"].files == ["*.npy"]
    card = (tmp_path / "out/README.md").read_text()
    assert "so this release has none; ids are of its own." in " ".join(card.split())
    assert re.search(r"\| `demo` \| 0 \| `\w{64}` \| contents \|", card)


# ---- refusals ---------------------------------------------------------------------------------------------------------


def test_all_that_is_wrong_with_the_options_is_told_at_once(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    options = AssembleOptions(0, "int8", False, "my licence", tmp_path / "absent", None)
    with pytest.raises(ConfigError) as caught:
        assemble(run, 10, tmp_path / "full", options)
    starts = [
        "--stage=0 must be at least 1", "--dtype=int8 is not one of float32, bfloat16, float16; leave it out",
        "--license='my licence' is no identifier of a licence; e.g. apache-2.0",
        f"{tmp_path}/full is not empty; a release is assembled in a folder of its own",
        f"--sign={tmp_path}/absent: No such file or directory",
    ]  # fmt: skip
    assert [problem.startswith(start) for problem, start in zip(caught.value.problems, starts, strict=True)] == [True] * 5
    assert content(tmp_path / "full") == {"file": b"mine"}
    with pytest.raises(ConfigError, match="absent is not a folder; a release is assembled in one that is there"):
        make(run, 10, tmp_path / "absent/out")
    with pytest.raises(ConfigError, match=r"file is not empty"):
        make(run, 10, tmp_path / "full/file")
    with pytest.raises(ConfigError, match="--step=3 is not saved"):
        make(run, 3, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_extra_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"plots need the package matplotlib; pip install 'olmo-train\[publish\]'"):
        make(run, 10, tmp_path / "out")


def test_a_model_without_a_class_in_transformers_is_refused(copy: Path, tmp_path: Path) -> None:
    step = copy / "steps/step00000010"
    rewrite(step, "config.yaml", (step / "config.yaml").read_text().replace("n_shared_experts: 0", "n_shared_experts: 1"))
    with pytest.raises(ConfigError, match=r"n_shared_experts: .* no Hugging Face class computes the same"):
        make(copy, 10, tmp_path / "out")


def test_a_damaged_step_is_not_published(copy: Path, tmp_path: Path) -> None:
    step = copy / "steps/step00000010"
    weights = step / "model-00001-of-00002.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.truncate(step / "optim-00000-of-00002.safetensors", 100)
    (step / "rng-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        make(copy, 10, tmp_path / "out", optimizer_state=True)
    said = str(caught.value)
    assert "model-00001-of-00002.safetensors: SHA-256" in said
    assert "optim-00000-of-00002.safetensors: 100 bytes, the manifest says" in said
    assert "rng-00001-of-00002.safetensors: missing" in said
    assert f"step 10 of {copy} is damaged; publish another, or restore it" in said
    assert not (tmp_path / "out").exists()


def test_manifests_that_are_gone_or_others_are_told(copy: Path, shards: Path, tmp_path: Path) -> None:
    step = copy / "steps/step00000010"
    text = (step / "config.yaml").read_text()
    rewrite(step, "config.yaml", re.sub(r"path: .*", f"path: {tmp_path}/gone", text))
    with pytest.raises(ShardError, match=r"data.sources.demo: .*gone/manifest.json does not exist"):
        make(copy, 10, tmp_path / "out")
    rewrite(step, "config.yaml", re.sub(r"path: .*", f"path: {shards}", text))
    with pytest.raises(
        ShardError, match=r"has fingerprint \w+, the run was trained on \w+; put back the manifest of the run's shards"
    ):
        make(copy, 10, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_failure_leaves_the_folder_as_it_was(copy: Path, tmp_path: Path, is_there: bool) -> None:
    out = tmp_path / "out"
    if is_there:
        out.mkdir()
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join([*lines[:5], "{broken}\n", *lines[6:]]))
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: line 6 is damaged .*; restore the file, or remove it and publish"):
        make(copy, 10, out)
    (copy / "metrics.jsonl").write_text("".join(lines[:7]))
    with pytest.raises(CheckpointError, match=r"metrics.jsonl ends at step 6, before step 10; restore it, or move it away"):
        make(copy, 10, out)
    (copy / "metrics.jsonl").unlink()
    (copy / "metrics.jsonl").mkdir()
    with pytest.raises(
        CheckpointError, match=r"metrics.jsonl: Is a directory; free space, or assemble elsewhere; nothing was left"
    ):
        make(copy, 10, out)
    assert out.exists() == is_there
    assert content(out) == {}


def test_a_last_line_cut_short_is_of_a_later_step(copy: Path, tmp_path: Path) -> None:
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "lo')
    make(copy, 10, tmp_path / "out")
    assert json.loads((tmp_path / "out/training/metrics.jsonl").read_bytes().splitlines()[-1])["step"] == 10


# ---- the documentation ------------------------------------------------------------------------------------------------


def test_the_digest_of_the_documentation_is_that_of_the_manifest(release: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/release.md").read_text(), re.S)
    assert len([line for line in script.splitlines() if line]) <= 10
    out = subprocess.run([sys.executable, "-c", script, release], capture_output=True, text=True, check=True).stdout
    assert out.strip() == read_release_folder(release).weights_sha256
