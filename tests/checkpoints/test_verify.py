"""Every damage to a step folder is found and named, and none hides another."""

import json
import os
import shutil
from pathlib import Path

import pytest

from checkpoints.verify import main
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
