"""Every damage to a step folder is found and named, and none hides another; a run is whole if its steps and records are."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints.verify.command import main
from checkpoints.verify.steps import REMEDY
from olmo_train.errors import EXIT_FAILED, CheckpointError, ConfigError, run_command
from tests.texts import TextCorpus


def test_a_whole_run_and_a_whole_step_pass(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(run / f"steps/step{n:08d}") for n in (0, 1, 2, 4, 5, 10)]
    assert all(": whole, 9 files, " in line for line in lines)  # two ranks' model, optim and rng, and three texts
    main([str(run / "steps/step00000004")])
    assert capsys.readouterr().out.splitlines() == [lines[3]]


def test_all_damage_is_told_in_one_go(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = copy / "steps"
    (steps / "step00000001/state.json").write_text("{}")
    (steps / "step00000002/manifest.json").write_text("{")
    os.truncate(steps / "step00000004/optim-00001-of-00002.safetensors", 100)
    weights = steps / "step00000005/model-00000-of-00002.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    (steps / "step00000010/rng-00000-of-00002.safetensors").unlink()
    assert run_command(main, [str(copy)]) == EXIT_FAILED
    out, err = capsys.readouterr()
    assert [": whole, " in line for line in out.splitlines()] == [True] + [False] * 5
    assert [line.split(": ", 1)[1].split(",")[0] for line in out.splitlines()[1:]] == ["DAMAGED"] * 5
    found = err.removeprefix("error: ").splitlines()
    expected = [
        (steps / "step00000001/state.json", ": 2 bytes, the manifest says "),
        (steps / "step00000002/manifest.json", " cannot be read: "),
        (steps / "step00000004/optim-00001-of-00002.safetensors", ": 100 bytes, the manifest says "),
        (weights, ": SHA-256 "),
        (steps / "step00000010/rng-00000-of-00002.safetensors", ": No such file or directory"),
    ]
    assert len(found) == len(expected)
    for line, (path, problem) in zip(found, expected, strict=True):
        assert line.startswith(f"{path}{problem}")


def test_rows_that_no_file_holds_are_missed_even_if_every_file_is_whole(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy / "steps/step00000010"
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = manifest["tensors"]["model"]["embedding.weight"]["shards"]
    assert [shard["start"] for shard in shards] == [0, 150]
    manifest["tensors"]["model"]["embedding.weight"]["shards"] = shards[:1]
    moment = next(name for name in manifest["tensors"]["optim"] if name.endswith("lm_head.weight"))
    manifest["tensors"]["optim"][moment]["shards"].pop(0)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError) as caught:
        main([str(folder)])
    assert str(caught.value).splitlines() == [
        f"{folder}: model tensor 'embedding.weight' has rows up to 150 of 300",
        f"{folder}: optim tensor {moment!r} has rows up to 0 of 300",
    ]
    assert "DAMAGED" in capsys.readouterr().out


def test_other_folders_are_not_mistaken_for_checkpoints(run: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        main([str(tmp_path)])
    with pytest.raises(CheckpointError, match=r"manifest.json is not of format olmo_train.step version 1"):
        main([str(corpus.shards)])
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("manifest.json"))
    with pytest.raises(ConfigError, match="has no finished step folder yet"):
        main([str(tmp_path / "run")])


# ---- the run as a whole -------------------------------------------------------------------------------------------------


def problems(*words: object) -> list[str]:
    try:
        main([str(word) for word in words])
    except CheckpointError as error:
        return str(error).splitlines()
    return []


def step(run: Path, number: int) -> Path:
    return run / "steps" / f"step{number:08d}"


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def test_a_missing_step_is_told_by_the_intervals_of_the_config(copy: Path) -> None:
    shutil.rmtree(step(copy, 4))
    shutil.rmtree(step(copy, 5))
    assert problems(copy) == [f"{copy}/steps: no step folder of step 4, 5, which checkpoint.save_every asks for; {REMEDY}"]


def test_a_step_is_judged_by_the_config_of_its_own_start(copy: Path) -> None:
    shutil.rmtree(step(copy, 5))
    config, manifest = step(copy, 10) / "config.yaml", step(copy, 10) / "manifest.json"
    text = config.read_text().replace("save_every: 5", "save_every: 10")
    config.write_text(text)
    values = json.loads(manifest.read_text())
    values["files"]["config.yaml"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    manifest.write_text(json.dumps(values))
    assert problems(copy) == [f"{copy}/steps: no step folder of step 8, which checkpoint.save_every asks for; {REMEDY}"]


@pytest.mark.parametrize(("words", "what"), [([], "21 of 21 tensors"), (["--quick"], "2 of 2 files of weights")])
def test_a_step_that_was_copied_over_another_is_told(copy: Path, words: list[str], what: str) -> None:
    shutil.rmtree(step(copy, 5))
    shutil.copytree(step(copy, 4), step(copy, 5))
    for name in ("state.json", "manifest.json"):
        path = step(copy, 5) / name
        path.write_text(path.read_text().replace('"step": 4,', '"step": 5,').replace('"tokens": 1024,', '"tokens": 1280,'))
    seal(step(copy, 5), "state.json")
    found = problems(copy, *words)
    assert f"{step(copy, 5)}: {what} equal those of step 4; one was copied over the other: {REMEDY}" in found
    assert len(found) == 2  # and its loss is that of step 4


def seal(folder: Path, name: str) -> None:
    values, data = json.loads((folder / "manifest.json").read_text()), (folder / name).read_bytes()
    values["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(values, indent=1))


def test_steps_that_were_all_skipped_may_be_equal(copy: Path) -> None:
    shutil.copytree(step(copy, 4), step(copy, 5), dirs_exist_ok=True)
    for name in ("state.json", "manifest.json"):
        path = step(copy, 5) / name
        path.write_text(path.read_text().replace('"step": 4,', '"step": 5,').replace('"tokens": 1024,', '"tokens": 1280,'))
    loss = json.loads((step(copy, 4) / "state.json").read_text())["loss"]
    seal(step(copy, 5), "state.json")

    def skip(lines: list[str]) -> list[str]:
        values = [json.loads(line) for line in lines]
        return [json.dumps(v | {"skipped": "loss", "loss": loss} if v["step"] == 5 else v) for v in values]

    rewrite(copy / "metrics.jsonl", skip)
    assert problems(copy) == []


def test_an_exchanged_step_is_told_by_its_own_records(copy: Path) -> None:
    step(copy, 4).rename(copy / "aside")
    step(copy, 5).rename(step(copy, 4))
    (copy / "aside").rename(step(copy, 5))
    found = problems(copy)
    for here, there in ((4, 5), (5, 4)):
        said = f"its manifest is that of step {there}, which is called step{there:08d}; give the folder its name back"
        assert f"{step(copy, here)}: {said}" in found


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("metrics.jsonl", lambda lines: [*lines[:2], *lines[4:]], "steps 2 to 3 are missing; restore it from a release or a copy"),
        ("metrics.jsonl", lambda lines: lines[:-2], "ends at step 8, step 10 is saved; restore it from a release or a copy"),
        ("metrics.jsonl", lambda lines: [line.replace('"tokens": 1280,', '"tokens": 1,') for line in lines], "step 5 has tokens=1, must be 1280"),
        ("metrics.jsonl", lambda lines: [line.replace('"step": 5, "tokens": 1280, "loss": ', '"step": 5, "tokens": 1280, "loss": 1') for line in lines], "loss 1"),
        ("data.jsonl", lambda lines: [*lines[:2], lines[1], *lines[2:]], "step 2 stands after step 2"),
        ("data.jsonl", lambda lines: ["cut", *lines[1:]], "line 1 is not a JSON object with a step"),
    ],
)  # fmt: skip
def test_records_that_do_not_fit_the_steps_are_told(
    copy: Path, file: str, change: Callable[[list[str]], list[str]], message: str
) -> None:
    rewrite(copy / file, change)
    found = problems(copy)
    assert any(line.startswith(f"{copy / file}: {message}") for line in found), found


def test_a_run_without_its_records_is_told(copy: Path) -> None:
    (copy / "data.jsonl").unlink()
    (found,) = problems(copy)
    assert found.startswith(f"{copy / 'data.jsonl'}: No such file or directory; restore it from a release or a copy")


def test_a_line_still_being_written_is_no_problem_unless_a_saved_step_lacks_it(copy: Path) -> None:
    for name in ("metrics.jsonl", "data.jsonl"):
        with open(copy / name, "a") as file:
            file.write('{"step": 11, "los')
    assert problems(copy) == []
    text = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(text[:-2]) + text[-2][:20])
    (found,) = problems(copy)
    assert found.startswith(f"{copy / 'metrics.jsonl'}: ends at step 9, step 10 is saved; restore it from a release or a copy")


def test_quick_compares_sizes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = step(copy, 5) / "model-00000-of-00002.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert problems(copy, "--quick") == []
    assert f"{step(copy, 5)}: sizes as they should be, 9 files" in capsys.readouterr().out
    os.truncate(weights, 9)
    (step(copy, 10) / "rng-00000-of-00002.safetensors").unlink()
    found = problems(copy, "--quick")
    assert [line.split(", the manifest")[0] for line in found] == [
        f"{weights}: 9 bytes", f"{step(copy, 10) / 'rng-00000-of-00002.safetensors'}: No such file or directory",
    ]  # fmt: skip
