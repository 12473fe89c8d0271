"""No stage writes into what it reads: its files would be documents at the next start."""

from pathlib import Path

import pytest

from data_tools.ingest import command as ingest
from data_tools.mix import command as mix
from data_tools.tokenize import command as tokenize
from olmo_train.errors import ConfigError

LINE = '{"id":"a","text":"one","source":"web"}\n'


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder of documents without `documents/`."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "x.jsonl").write_text(LINE)
    return tmp_path / "plain"


def _source(folder: Path) -> str:
    return f"sources={{s: {{kind: jsonl, paths: [{folder}]}}}}"


def test_an_output_within_what_is_read_is_refused(plain: Path) -> None:
    output, before = f"output={plain}/new", sorted(plain.rglob("*"))
    rule = rf"output={plain}/new lies in {plain}, which is read; give a folder elsewhere"
    with pytest.raises(ConfigError, match=rule):
        mix.main([f"sources.s.documents=[{plain}]", output])
    with pytest.raises(ConfigError, match=rule):
        tokenize.main([f"documents=[{plain}]", "tokenizer=x.json", output])
    with pytest.raises(ConfigError, match=rule):
        ingest.main([_source(plain), output])
    assert sorted(plain.rglob("*")) == before


def test_a_link_leads_into_what_is_read_as_well(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(plain)
    with pytest.raises(ConfigError, match="lies in"):
        mix.main([f"sources.s.documents=[{plain}]", f"output={tmp_path}/link/new"])


def test_a_folder_beside_the_documents_of_a_dataset_is_no_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "web" / "documents" / "x.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(LINE)
    mix.main([f"sources.s.documents=[{tmp_path}/web]", f"output={tmp_path}/web/mixed", "processes=1"])
    assert list((tmp_path / "web/mixed/documents/s").iterdir())


def test_ingest_adds_nothing_to_documents_that_another_stage_wrote(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "web" / "documents").mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"output={tmp_path}/web has documents/ already, which no ingest wrote; give another"):
        ingest.main([_source(plain), f"output={tmp_path}/web"])
