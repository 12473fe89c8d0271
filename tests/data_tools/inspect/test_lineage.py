"""The chain from raw files to shards, and every way in which a link of it can break."""

import json
import os
import shutil
from pathlib import Path

import pytest

from data_tools.inspect.check_lineage import check_lineage
from data_tools.inspect.lineage import by_reason, lineage
from olmo_train.errors import ShardError
from tests.data_tools.inspect.pipeline import Made


def test_a_chain_leads_from_shards_to_raw_files(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.folder)
    roots = lineage("shards")
    assert [root.path.name for root in roots] == ["base", "mixed", "shards"]
    assert [[stage.name for stage in root.stages] for root in roots] == [["ingest", "dedupe", "tag"], ["mix"], ["tokenize"]]
    found = check_lineage(roots, True)
    assert (found.problems, found.notes) == ([], [])
    assert found.links == 2 + 2 + 2 + 2  # tag, dedupe and mix read two files of base each, tokenize two of mixed
    assert by_reason(roots[1].stages[0], "dropped") == {"web": {"rules__length__characters < 10": 1}}
    assert by_reason(roots[0].stages[1], "duplicates") == {"web": {"document": 1}}


def problems(own: Made, full: bool = True) -> str:
    return "\n".join(check_lineage(lineage(own.folder / "shards"), full).problems)


def test_what_was_changed_after_it_was_written_is_told(own: Made) -> None:
    path = own.base / "documents/web.jsonl.zst"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert problems(own, full=False) == ""
    assert problems(own).startswith(f"{path}: xxh3 ")
    path.write_bytes(whole[:-1])
    assert problems(own, full=False).startswith(f"{path}: {len(whole) - 1:,} bytes, not {len(whole):,}, as ingest wrote it; ")
    path.unlink()
    assert problems(own, full=False).startswith(f"{path}: is not there, as ingest wrote it; copy it again, or run ingest again")


def test_a_stage_that_ran_again_behind_the_next_one_is_told(own: Made) -> None:
    path = next((own.base / "stages/ingest/parts/work").glob("web*.json"))
    record = json.loads(path.read_text())
    (name,) = [name for name in record["outputs"] if name.endswith("web.jsonl.zst") and "documents" in name]
    record["outputs"][name]["xxh3_128"] = "0" * 32
    path.write_text(json.dumps(record))
    told = problems(own, full=False)
    assert f"{own.base / 'documents/web.jsonl.zst'}: mix read another file (" in told
    assert "than ingest wrote (" in told
    assert "one of them ran again since; run mix again in another folder" in told


def test_raw_files_that_changed_are_told_and_those_that_are_gone_noted(own: Made) -> None:
    raw = own.raw / "books.jsonl"
    stage = own.base / "stages/ingest"
    record_path = next((stage / "parts/work").glob("books*.json"))
    record = json.loads(record_path.read_text())
    record["inputs"] = {str(raw): next(iter(record["inputs"].values()))}
    record_path.write_text(json.dumps(record))
    raw.write_text("{}\n")
    assert problems(own, full=False).startswith(f"{raw}: 3 bytes, not ")
    raw.unlink()
    found = check_lineage(lineage("shards"), True)
    assert found.problems == []
    assert found.notes == [
        f"{stage}: 1 files that it read are not there any more, the first {raw}; what it read cannot be compared"
    ]


def test_a_dataset_that_was_moved_keeps_its_own_chain(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made.base, tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    (root,) = [r for r in lineage(tmp_path / "elsewhere") if r.path == tmp_path / "elsewhere"]
    found = check_lineage([root], True)
    assert found.problems == []
    assert found.links == 4


def test_a_stage_that_is_not_finished_is_told(own: Made) -> None:
    (own.mixed / "stages/mix/summary.json").unlink()
    assert problems(own).startswith(f"{own.mixed / 'stages/mix'}: not finished; the command that began it goes on where it ended")


def test_a_folder_without_stages_and_damaged_records_are_told(own: Made, tmp_path: Path) -> None:
    with pytest.raises(ShardError) as caught:
        lineage(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no dataset or shards: none of stages/, documents/, attributes/ or manifest.json is in it; give the folder "
        "that a stage wrote"
    )
    path = own.mixed / "stages/mix/stage.json"
    path.write_text("{")
    with pytest.raises(ShardError, match=r"mix/stage.json: cannot be read: .*; run the stage again, or copy it again"):
        lineage(own.mixed)
    path.write_text("[]")
    with pytest.raises(ShardError, match=r"mix/stage.json: is not a JSON object; "):
        lineage(own.mixed)
    record = next(Path("mixed/stages/mix/parts/work").glob("*.json"))
    record.write_text(json.dumps({"unknown": 1}))
    with pytest.raises(ShardError, match=f"{os.path.basename(record)}: is no record of a part: "):
        list(lineage("base")[0].stages) and list(lineage_of_mixed().records())


def lineage_of_mixed():  # type: ignore[no-untyped-def]
    from data_tools.inspect.lineage import StageFolder

    return StageFolder(Path("mixed"), "mix")
