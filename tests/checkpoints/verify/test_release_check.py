"""Everything that can be wrong with one release is found, and said with the revision, the place, both values and what to do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.publish.signature import read_public_key, write_key_pair
from checkpoints.release import MANIFEST, SIGNATURE, read_release_folder
from checkpoints.verify.command import main
from olmo_train.errors import EXIT_FAILED, ConfigError, run_command
from tests.checkpoints.verify.releases import edit_json, flip, forge, name, problems, sign_all, write

REVISION = name(5)
WEIGHTS = "model.safetensors"


@pytest.fixture
def release(releases: Path, tmp_path: Path) -> Path:
    """One release, to damage."""
    return Path(shutil.copytree(releases / REVISION, tmp_path / REVISION))


def line_with(found: list[str], *parts: str) -> str:
    """The one line that has all the parts."""
    lines = [line for line in found if all(part in line for part in parts)]
    assert len(lines) == 1, found
    return lines[0]


# ---- whole ones ---------------------------------------------------------------------------------------------------------


def test_a_whole_release_passes_without_a_word_of_complaint(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [str(release)]) == 0
    out, err = capsys.readouterr()
    files = read_release_folder(release).files
    size = sum(entry["bytes"] for entry in files.values())
    assert out == f"{REVISION}: whole, {len(files)} files, {size / 2**20:,.1f} MiB, not signed\n"
    assert err == ""


def test_a_release_may_lie_in_a_folder_of_any_name(release: Path) -> None:
    assert problems(release.rename(release.with_name("fetched"))) == []


def test_a_release_is_read_from_a_store_without_a_file_on_this_machine(releases: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(releases / REVISION), f"/one/{REVISION}", recursive=True)
    before = sorted(tmp_path.rglob("*"))
    assert problems(f"memory://one/{REVISION}") == []
    memory.pipe(f"/one/{REVISION}/README.md", b"other")
    assert line_with(problems(f"memory://one/{REVISION}"), "README.md: 5 bytes, release.json says ")
    assert sorted(tmp_path.rglob("*")) == before


# ---- files --------------------------------------------------------------------------------------------------------------

FILES = [
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md",
    "plots/loss.png", "evaluations.json", "training/config.yaml", "training/state.json", "training/provenance.json",
    "training/metrics.jsonl", "training/data.jsonl", "training/step.json", "training/data/demo/manifest.json",
    "training/optim-00001-of-00002.safetensors", "training/rng-00000-of-00002.safetensors",
]  # fmt: skip


def test_every_kind_of_file_is_in_the_list_of_those_that_are_damaged_below(release: Path) -> None:
    def kind(path: str) -> str:
        return path.replace("00000-of", "00001-of") if "optim" in path else path.replace("00001-of", "00000-of")

    there = {kind(path) for path in read_release_folder(release).files}
    assert {path for path in there if not path.startswith("plots/")} == {path for path in FILES if not path.startswith("plots/")}


@pytest.mark.parametrize("file", FILES)
def test_one_changed_bit_is_found_in_every_kind_of_file(release: Path, file: str) -> None:
    flip(release / file)
    entry = read_release_folder(release).files[file]
    found = problems(release)
    line = line_with(found, f"{REVISION}: {file}: SHA-256 ")
    assert f", release.json says {entry['sha256']}; fetch it again, or publish the release again" in line
    assert all(line.startswith(f"{REVISION}: ") for line in found)


def test_the_tensor_with_the_changed_bit_is_named(release: Path) -> None:
    manifest = read_release_folder(release)
    flip(release / WEIGHTS, -1)
    found = problems(release)
    tensors = [line.split("tensor ")[1].split(" ")[0] for line in found if f"{WEIGHTS}: tensor " in line]
    assert len(tensors) == 1
    entry = manifest.tensors[tensors[0]]
    assert line_with(found, f"{REVISION}: {WEIGHTS}: tensor {tensors[0]} has SHA-256 ", f"release.json says {entry['sha256']}")
    last = max(
        json.loads((release / WEIGHTS).read_bytes()[8:].split(b"}}")[0] + b"}}").items(),
        key=lambda item: item[1].get("data_offsets", [0]),
    )
    assert tensors[0] == last[0]


def test_missing_extra_and_cut_files_are_told_together(release: Path) -> None:
    entries = read_release_folder(release).files
    (release / "tokenizer.json").unlink()
    (release / "backdoor.py").write_text("import os")
    os.truncate(release / WEIGHTS, 1000)
    shutil.rmtree(release / "plots")
    found = problems(release)
    size = entries["tokenizer.json"]["bytes"]
    assert line_with(found, f"{REVISION}: tokenizer.json: missing; release.json lists it with {size} bytes: fetch it again")
    assert line_with(found, f"{REVISION}: {WEIGHTS}: 1000 bytes, release.json says {entries[WEIGHTS]['bytes']}; ")
    assert line_with(found, f"{REVISION}: backdoor.py: not in release.json; remove it")
    assert sum("plots/" in line for line in found) == sum(path.startswith("plots/") for path in entries)


def test_other_weights_of_the_same_size_are_told_tensor_by_tensor(release: Path) -> None:
    tensors = load_file(release / WEIGHTS)
    shapes = {tensor: list(value.shape) for tensor, value in tensors.items()}
    embedding = "model.embed_tokens.weight"
    tensors[embedding] = tensors[embedding].reshape(shapes[embedding][::-1])
    (release / WEIGHTS).unlink()
    save_file(
        {("model.norm.other" if key == "model.norm.weight" else key): value for key, value in tensors.items()},
        release / WEIGHTS,
        {"format": "pt"},
    )
    forge_files_only(release)
    found = problems(release)
    assert line_with(found, f"tensor {embedding} is F32 {shapes[embedding][::-1]}, release.json says F32 {shapes[embedding]}")
    assert line_with(found, f"{WEIGHTS}: tensor model.norm.weight is missing, release.json says it is in this file")
    assert line_with(found, f"{WEIGHTS}: tensor model.norm.other is not one that release.json says is in this file")


def forge_files_only(release: Path) -> None:
    tensors, digest = read_release_folder(release).tensors, read_release_folder(release).weights_sha256

    def restore(manifest: Any) -> None:
        manifest.tensors, manifest.weights_sha256 = tensors, digest

    forge(release, restore)


def test_a_file_that_is_no_safetensors_is_told(release: Path) -> None:
    write(release / WEIGHTS, b"\xff" * (release / WEIGHTS).stat().st_size)
    assert line_with(problems(release), f"{REVISION}: {WEIGHTS}: not safetensors: its header would have")


# ---- the manifest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: setattr(r, "weights_sha256", "0" * 64), f"release.json: weights_sha256={'0' * 64}, its tensors make "),
        (lambda r: setattr(r, "name", name(4)), f"release.json: name={name(4)}, but stage 1, step 5 and 1280 tokens are called {name(5)}"),
        (lambda r: setattr(r, "tokens", 10**9), "release.json: name=stage1-step5-tokens0B, but stage 1, step 5 and 1000000000 tokens are called stage1-step5-tokens1B"),
        (lambda r: setattr(r, "tokens", 1281), "release.json: tokens=1281, 5 steps of data.global_batch_size=256 (training/config.yaml) are 1280"),
        (lambda r: setattr(r, "loss", 1.0), "training/state.json: loss="),
        (lambda r: setattr(r, "architecture", "LlamaForCausalLM"), "release.json: architecture=LlamaForCausalLM, the model of training/config.yaml is OlmoeForCausalLM"),
        (lambda r: setattr(r, "parameters", {"total": 1, "active": 1}), "release.json: parameters={'active': 1, 'total': 1}, the model of training/config.yaml has total "),
        (lambda r: setattr(r, "dtype", "bfloat16"), "release.json: dtype=bfloat16, its tensors are float32"),
        (lambda r: r.data.update(next_position=7), "release.json: data.next_position=7, 5 steps end at 80"),
        (lambda r: r.data["order"].update(seed=1), "release.json: data.order.seed=1, training/config.yaml makes it "),
        (lambda r: r.data["order"].update(seed=1), "training/state.json: the data order's key is not that of release.json"),
        (lambda r: r.data["order"]["sources"][0].update(manifest="ab"), "training/data: no manifest has the fingerprint ab that the data order has for source demo"),
        (lambda r: r.tensors.pop("model.norm.weight"), "release.json: no tensor model.norm.weight, which the model of training/config.yaml has"),
        (lambda r: r.tensors.update({"extra": r.tensors["model.norm.weight"]}), "release.json: tensor extra is none of the model of training/config.yaml"),
        (lambda r: r.tensors["model.norm.weight"].update(file="x.safetensors"), "release.json: tensor model.norm.weight is in x.safetensors, which is not among its files"),
    ],
)  # fmt: skip
def test_an_edited_manifest_contradicts_the_files(release: Path, change: Callable[[Any], object], message: str) -> None:
    forge(release, change)
    found = problems(release)
    assert any(line.startswith(f"{REVISION}: {message}") for line in found), found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["files"]["README.md"].pop("bytes"), "release.json cannot be used: 'bytes' is not of its form"),
        (lambda v: v["files"].update({"../x": v["files"]["README.md"]}), "names the file '../x', which is not inside the release"),
        (lambda v: v["tensors"]["model.norm.weight"].update(sha256="abc"), "release.json cannot be used: "),
        (lambda v: v["tensors"]["model.norm.weight"].update(shape=["x"]), "release.json cannot be used: tensors.model.norm.weight="),
        (lambda v: v["files"]["README.md"].update(sha256="00"), "release.json cannot be used: files.README.md="),
        (lambda v: v.update(data={}), "release.json cannot be used: 'order' is not of its form"),
        (lambda v: v.update(step="5"), "release.json cannot be used: stage, step, tokens, rows="),
        (lambda v: v.pop("tensors"), "release.json cannot be used: unknown or missing fields: tensors"),
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_is_no_release(
    release: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_json(release / MANIFEST, change)
    found = problems(release)
    assert message in line_with(found, f"{REVISION}: ")
    assert "without a whole release.json it is unfinished or not a release of ours" in found[0]


def test_a_manifest_that_was_only_spelled_otherwise_is_told(release: Path) -> None:
    edit_json(release / MANIFEST, lambda values: None)
    text = json.dumps(json.loads((release / MANIFEST).read_text())).encode()
    write(release / MANIFEST, text)
    assert problems(release) == [
        f"{REVISION}: release.json: spelled otherwise than it is written; it was edited: fetch it again, or publish the release again"
    ]


def test_a_release_without_its_manifest_is_unfinished(release: Path) -> None:
    (release / MANIFEST).unlink()
    assert "without a whole release.json it is unfinished or not a release of ours" in line_with(problems(release), REVISION)


# ---- what it says of its training ---------------------------------------------------------------------------------------


def drop_line(path: Path, number: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    del lines[number]
    write(path, "".join(lines).encode())


def repeat_line(path: Path, number: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    write(path, "".join(lines[: number + 1] + lines[number:]).encode())


def edit_line(path: Path, number: int, **values: Any) -> None:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | values)
    write(path, ("\n".join(lines) + "\n").encode())


def exchange_manifest(path: Path) -> None:
    from olmo_train.data.manifest import read_manifest, write_manifest

    manifest = read_manifest(path)
    manifest.heldout_frac = 0.5
    path.unlink()
    write_manifest(path.parent, manifest)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda p: edit_json(p, lambda v: v.update(hidden_size=64)), "config.json: hidden_size=64, the model of training/config.yaml has 32; publish the release again from its run"),
        ("config.json", lambda p: write(p, b"{"), "config.json: cannot be read as JSON"),
        ("config.json", lambda p: write(p, b"[]"), "config.json: not a JSON object"),
        ("training/config.yaml", lambda p: write(p, p.read_bytes().replace(b"d_model: 32", b"d_model: 64")), "config.json: hidden_size=32, the model of training/config.yaml has 64"),
        ("training/config.yaml", lambda p: write(p, b"seed: x"), "training/config.yaml: seed='x' is a str, must be a int"),
        ("training/config.yaml", lambda p: write(p, p.read_bytes().replace(b"qk_norm: full", b"qk_norm: none")), "training/config.yaml: model.qk_norm=none: OlmoeForCausalLM has full"),
        ("training/state.json", lambda p: edit_json(p, lambda v: v.update(step=4)), "training/state.json: step=4, release.json says 5"),
        ("training/state.json", lambda p: edit_json(p, lambda v: v.update(tokens=4)), "training/state.json: tokens=4, release.json says 1280"),
        ("training/state.json", lambda p: edit_json(p, lambda v: v["data"].update(next_position=4)), "training/state.json: data.next_position=4, 5 steps end at 80"),
        ("training/state.json", lambda p: edit_json(p, lambda v: v.update(lr=1.0)), "training/state.json: SHA-256 "),
        ("training/step.json", lambda p: edit_json(p, lambda v: v.update(step=4)), "training/step.json: step=4, release.json says 5"),
        ("training/optim-00000-of-00002.safetensors", lambda p: flip(p, -1), "training/optim-00000-of-00002.safetensors: SHA-256 "),
        ("training/rng-00000-of-00002.safetensors", lambda p: p.unlink(), "training/step.json: rng-00000-of-00002.safetensors is not published, but has_optimizer promises that training can go on"),
        ("training/metrics.jsonl", lambda p: drop_line(p, -1), "training/metrics.jsonl: ends at step 4, the release is of step 5"),
        ("training/metrics.jsonl", lambda p: drop_line(p, 2), "training/metrics.jsonl: step 2 is missing"),
        ("training/metrics.jsonl", lambda p: repeat_line(p, 2), "training/metrics.jsonl: step 2 stands after step 2"),
        ("training/metrics.jsonl", lambda p: edit_line(p, 2, tokens=7), "training/metrics.jsonl: step 2 has tokens=7, must be 512"),
        ("training/metrics.jsonl", lambda p: edit_line(p, -1, loss=7.0), "training/metrics.jsonl: loss 7.0 at step 5, release.json says "),
        ("training/metrics.jsonl", lambda p: write(p, p.read_bytes() + b"[]\n"), "training/metrics.jsonl: line 7 is not a JSON object with a step"),
        ("training/data.jsonl", lambda p: drop_line(p, 1), "training/data.jsonl: step 2 is missing"),
        ("training/data.jsonl", lambda p: edit_line(p, 1, position=7), "training/data.jsonl: step 2 has position=7, must be 16"),
        ("training/data.jsonl", lambda p: edit_line(p, 1, rows=7), "training/data.jsonl: step 2 has rows=7, must be 16"),
        ("training/data/demo/manifest.json", lambda p: edit_json(p, lambda v: v.update(vocab_size=7)), "training/data/demo/manifest.json: "),
        ("training/data/demo/manifest.json", exchange_manifest, "training/data/demo/manifest.json: fingerprint "),
        ("training/data/demo/manifest.json", exchange_manifest, "training/data: no manifest has the fingerprint "),
    ],
)  # fmt: skip
def test_a_careful_forgery_contradicts_itself(release: Path, file: str, change: Callable[[Path], object], message: str) -> None:
    change(release / file)
    forge(release)
    found = problems(release)
    assert any(line.startswith(f"{REVISION}: {message}") for line in found), found
    assert not any(str(Path("/tmp")) in line for line in found)  # names in the release, not of copies


def test_many_damaged_lines_are_a_number(release: Path) -> None:
    lines = [json.dumps({"step": 1, "tokens": 256, "loss": 1.0}) for _ in range(40)]
    write(release / "training/metrics.jsonl", "\n".join(lines).encode())
    forge(release)
    found = [line for line in problems(release) if "metrics.jsonl: " in line]
    assert sum("step 1 stands after step 1" in line for line in found) == 10
    assert line_with(found, "training/metrics.jsonl: and 29 more of the kind")


# ---- signatures ---------------------------------------------------------------------------------------------------------


def test_a_signature_counts_only_by_a_key_that_is_trusted(
    release: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, other = f"--public-key={key}.pub", f"--public-key={write_key_pair(tmp_path / 'other')}"
    assert line_with(problems(release, ours), f"{REVISION}: {SIGNATURE}: missing, and --public-key asks for one")
    sign_all(release.parent, key)
    public = read_public_key(key.with_name("ours.pub"))
    capsys.readouterr()
    assert problems(release, other, ours) == []
    assert f"signed by the trusted key {public}\n" in capsys.readouterr().out
    assert line_with(problems(release, other), f"{REVISION}: {SIGNATURE}: by the key {public}, which is none of --public-key")
    assert problems(release) == []
    assert f"signed by the key {public}, of which nothing is known" in capsys.readouterr().out


def test_a_changed_manifest_does_not_fit_its_signature_even_if_no_key_is_given(release: Path, key: Path) -> None:
    sign_all(release.parent, key)
    (release / "README.md").write_text("better")
    forge(release)
    for words in ([], [f"--public-key={key}.pub"]):
        (found,) = problems(release, *words)
        said = "does not fit release.json: one of them was changed after signing; fetch both again from a place you trust"
        assert found == f"{REVISION}: {REVISION}/release.json.sig {said}"


# ---- how deep -----------------------------------------------------------------------------------------------------------


def test_quick_looks_at_names_and_sizes_only(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(release / WEIGHTS)
    assert problems(release, "--quick") == []
    assert f"{REVISION}: sizes and claims as they should be, " in capsys.readouterr().out
    os.truncate(release / "README.md", 3)
    assert line_with(problems(release, "--quick"), "README.md: 3 bytes")


def test_weights_only_reads_nothing_but_weights(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(release / "README.md")
    (release / "tokenizer.json").unlink()
    assert problems(release, "--weights-only") == []
    assert f"{REVISION}: whole, 1 files, " in capsys.readouterr().out
    flip(release / WEIGHTS, -1)
    assert len(problems(release, "--weights-only")) == 2


def test_the_findings_are_written_for_programs_too(release: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert problems(release, f"--json={file}") == []
    found = json.loads(file.read_text())
    assert (found["is_good"], found["problems"], found["replay"]) == (True, [], None)
    flip(release / "README.md")
    told = problems(release, f"--json={file}")
    found = json.loads(file.read_text())
    assert (found["where"], found["is_good"], found["problems"]) == (str(release), False, told)
    (checked,) = found["checked"]
    assert (checked["name"], checked["problems"], checked["signature"]) == (REVISION, told, "not signed")
    with pytest.raises(
        ConfigError, match=r"--json=.*/none/x.json cannot be written: No such file or directory; give another file"
    ):
        problems(release.parent / REVISION, f"--json={tmp_path}/none/x.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{release}", "--revision=main"], "--revision=main goes with a store of releases"),
        (["{run}", "--public-key={key}.pub"], "--public-key goes with releases"),
        (["{run}", "--weights-only"], "--weights-only goes with releases"),
        (["{release}", "--public-key=none.pub"], "public key none.pub: No such file or directory"),
        (["nowhere"], "nowhere is no folder, hub repository"),
        (["{run}/config.yaml"], "config.yaml is no folder, hub repository"),
        (["{empty}"], "is not the folder of a run .it has no config.yaml., of a step .manifest.json., of a release .release.json."),
        (["memory://nothing"], "memory://nothing: no release; there are: none"),
        (["{release}", "--from=x", "--ranks=2", "--shards=a=b"], "--from goes with --replay"),
        (["{release}", "--shards=a"], "--shards a is not NAME=FOLDER; e.g. --shards web=shards/web"),
        (["{release}", "--replay", "--quick"], "--quick does not go with --replay, which verifies the two checkpoints wholly"),
        (["{release}", "--replay", "--from=x"], "--from=x goes with a run or a store of releases; .* is where the replay starts"),
        (["{release}", "--replay=0"], "--replay=0 must be at least 1 step"),
        (["{release}", "--replay", "--ranks=0"], "--ranks=0 must be at least 1"),
        (["{release}", "--replay", "--tolerance=-1"], "--tolerance=-1.0 must not be negative"),
    ],
)  # fmt: skip
def test_words_that_do_not_fit_are_refused(
    words: list[str], message: str, releases: Path, run: Path, key: Path, tmp_path: Path
) -> None:
    places = {"release": releases / REVISION, "run": run, "key": key, "empty": tmp_path}
    with pytest.raises(ConfigError, match=message):
        main([word.format(**places) for word in words])


def test_any_problem_gives_the_exit_status_of_a_failure(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(release / "README.md")
    assert run_command(main, [str(release)]) == EXIT_FAILED
    out, err = capsys.readouterr()
    assert out.startswith(f"{REVISION}: WRONG, ")
    assert err.startswith(f"error: {REVISION}: README.md: SHA-256 ")


def test_weights_of_other_number_formats_are_compared_too(run: Path, tmp_path: Path) -> None:
    from tests.checkpoints.verify.releases import assemble_series

    assemble_series(run, [5], tmp_path, dtype="bfloat16", optimizer_state=False)
    assert problems(tmp_path) == []
    assert {tensor.dtype for tensor in load_file(tmp_path / REVISION / WEIGHTS).values()} == {torch.bfloat16}
