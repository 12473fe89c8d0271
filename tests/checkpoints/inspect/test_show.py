"""What is shown of a checkpoint is what its files and its run say."""

import json
from pathlib import Path

import pytest

from checkpoints.inspect.describe import describe
from checkpoints.inspect.identity import weights_identity
from checkpoints.inspect.show import main
from checkpoints.inspect.tables import columns, value, write_json
from checkpoints.opening import open_checkpoint
from checkpoints.publish.assemble import AssembleOptions, assemble
from checkpoints.release import read_release_folder
from olmo_train.checkpoint import read_manifest, read_state
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.model.size import count_params
from tests.runs import metrics


@pytest.fixture(scope="module")
def release(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "stage1-step10-tokens0B"
    assemble(run, 10, folder, AssembleOptions(1, "bfloat16", True, "apache-2.0", None, None))
    return folder


def test_a_step_is_what_its_files_say(run: Path) -> None:
    checkpoint = open_checkpoint(str(run), 5)
    found, state = describe(checkpoint), read_state(checkpoint.folder)
    assert found.kind == "step folder"
    assert (found.identity["step"], found.identity["tokens"], found.identity["kept"]) == (5, 1280, "permanent")
    assert found.identity["written by ranks"] == 2
    assert found.has_optimizer
    assert found.parameters == {"total": count_params(checkpoint.model).total, "active": count_params(checkpoint.model).active}
    assert sum(found.parameters_by_kind.values()) == found.parameters["total"]
    assert found.parameters_by_kind["experts.gate"] == 2 * 4 * 16 * 32
    assert found.dtypes == {"F32": len(checkpoint.weights.shapes)}
    assert (found.training["run"], found.training["loss"], found.training["lr"]) == ("first", state["loss"], state["lr"])
    assert found.training["done_frac"] == 0.5
    assert found.data["next_instance"] == state["data"]["next_position"]
    assert found.data["order_sha256"] == state["data"]["order"]["sha256"]
    (line,) = [line for line in metrics(run) if line["step"] == 5]
    assert {entry.label: entry.metrics for entry in found.evaluations} == line["eval"]["heldout"]
    manifest = read_manifest(checkpoint.folder)
    assert {name: size for name, size in found.files.items() if name != "manifest.json"} == {
        name: entry["bytes"] for name, entry in manifest["files"].items()
    }
    assert found.architecture["moe.n_experts"] == 4
    assert found.tensors is None


def test_a_release_is_what_its_manifest_says(release: Path) -> None:
    found, manifest = describe(open_checkpoint(str(release))), read_release_folder(release)
    assert found.kind == "release"
    assert found.identity["name"] == "stage1-step10-tokens0B"
    assert found.identity["weights_sha256"] == manifest.weights_sha256
    assert found.identity["release_sha256"] == manifest.sha256
    assert found.identity["exact weights of the run"] is False
    assert found.has_optimizer
    assert found.dtypes == {"BF16": 21}
    assert {entry.label for entry in found.evaluations} == {"animals", "places", "all"}
    assert found.training["run"] == "first"


def test_a_hugging_face_folder_alone_is_shown_too(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((release / name).read_bytes())
    found = describe(open_checkpoint(str(folder)))
    assert (found.kind, found.training, found.data, found.evaluations) == ("Hugging Face folder", {}, {}, [])
    assert not found.has_optimizer
    main([str(folder)])
    assert "Training:" not in capsys.readouterr().out


def test_stats_of_tensors_are_those_of_the_tensors(run: Path) -> None:
    checkpoint = open_checkpoint(str(run))
    found = describe(checkpoint, with_tensors=True).tensors
    assert found is not None
    assert [stats.name for stats in found] == list(checkpoint.weights.shapes)
    for stats in found:
        x = checkpoint.weights.read(stats.name).double()
        assert stats.shape == tuple(x.shape)
        assert stats.norm == pytest.approx(float(x.norm()), rel=1e-12)
        assert stats.mean == pytest.approx(float(x.mean()), rel=1e-9, abs=1e-15)
        assert stats.std == pytest.approx(float(x.std(correction=0)), rel=1e-9)
        assert (stats.low, stats.high) == (float(x.min()), float(x.max()))


def test_the_command_prints_and_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--step", "5", "--tensors", "--json", str(tmp_path / "show.json")])
    out = capsys.readouterr().out
    assert out.startswith(f"{run}/steps/step00000005: a step folder, F32 (21 tensors), with optimizer state\n")
    titles = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert [title.split(",")[0].rstrip(":") for title in titles[1:]] == [
        "Identity", "Training", "Data", "Architecture", "Parameters", "Evaluations", "Files", "Tensors",
    ]  # fmt: skip
    assert "  embedding.weight" in out
    values = json.loads((tmp_path / "show.json").read_text())
    assert len(values["tensors"]) == 21
    assert values["training"]["run"] == "first"
    main([f"{run}@0"])
    assert "step00000000: a step folder" in capsys.readouterr().out


def test_the_identity_changes_with_the_weights_and_not_with_the_name(
    run: Path, copy: Path, release: Path, tmp_path: Path
) -> None:
    digests = [weights_identity(open_checkpoint(str(run), step)) for step in (0, 1, 10)]
    assert len(set(digests)) == 3
    assert weights_identity(open_checkpoint(str(copy), 10)) == digests[2]
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "model.safetensors"):
        (plain / name).write_bytes((release / name).read_bytes())
    before = weights_identity(open_checkpoint(str(plain)))
    data = bytearray((plain / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (plain / "model.safetensors").write_bytes(data)
    assert weights_identity(open_checkpoint(str(plain))) != before


def test_damage_is_named(copy: Path) -> None:
    (copy / "steps/step00000010/provenance.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step00000010/provenance.json cannot be read"):
        describe(open_checkpoint(str(copy)))
    (copy / "steps/step00000010/provenance.json").unlink()
    assert "code" not in describe(open_checkpoint(str(copy))).training


def test_columns_are_aligned_and_values_are_readable(tmp_path: Path) -> None:
    assert columns([["a", "10"], ["bcd", "5"]], indent="  ") == ["  a    10", "  bcd   5"]
    assert [value(x) for x in (None, float("nan"), float("inf"), 1234, 12.345)] == ["\N{EN DASH}", "nan", "inf", "1,234", "12.35"]
    assert columns([]) == []
    with pytest.raises(ConfigError, match="Is a directory; give --json a file that can be written"):
        write_json(tmp_path, {})
