"""Problems of a run's sources that show before anything is read."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from olmo_train.config.data import DataConfig, SourceConfig
from olmo_train.data.checks import find_data_problems, readable_corpora
from olmo_train.data.manifest import read_manifest, write_manifest
from tests.corpora import VOCAB, Spec, write_corpus


def config(**paths: Path) -> DataConfig:
    return DataConfig({name: SourceConfig(path=str(path)) for name, path in paths.items()}, 16, 64, 64)


def test_whole_sources_have_no_problems(shards: Path) -> None:
    assert find_data_problems(config(a=shards), VOCAB, needs_heldout=True) == []
    assert len(readable_corpora(config(a=shards))) == 1


@pytest.mark.parametrize("suffix", ["starts", "ids", "heldout", "blocks"])
def test_a_missing_index_is_named(shards: Path, tmp_path: Path, suffix: str) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    (folder / f"index/a/part-00000.{suffix}.idx").unlink()
    [problem] = find_data_problems(config(web=folder), VOCAB, needs_heldout=False)
    assert problem == (
        f"data.sources.web: {folder}/index/a/part-00000.{suffix}.idx is missing: part of the document index; "
        "write it again with `olmo data manifest`"
    )


def test_every_source_is_looked_at(shards: Path, tmp_path: Path) -> None:
    short = Path(shutil.copytree(shards, tmp_path / "short"))
    (short / "a/part-00000.npy").write_bytes(b"1234")
    (short / "b/part-00000.csv.gz").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    data = config(short=short, empty=empty)
    data.sources["chosen"] = SourceConfig(path=str(shards), select="c")
    problems = find_data_problems(data, VOCAB - 1, needs_heldout=True)
    assert [problem.split(":")[0] for problem in problems] == [
        "data.sources.short", "data.sources.short", "data.sources.short", "data.sources.empty.path",
        "data.sources.chosen.select=c is not a source of " + str(shards) + "; it has a, b", "data.sources.chosen",
    ]  # fmt: skip
    assert "they part at token 2 (byte 4): the file was truncated or exchanged; copy it again" in problems[0]
    assert "part-00000.csv.gz is missing" in problems[1]
    assert problems[2].endswith(
        f"ids go up to {VOCAB - 1}, the model has {VOCAB - 1} rows; set model.vocab_size={VOCAB} or use shards of the model's tokenizer"
    )
    assert f"{empty}/manifest.json does not exist; write it with `olmo data tokenize` or `olmo data manifest`" in problems[3]
    assert [corpus.folder for corpus in readable_corpora(data)] == [short, shards]


def test_sources_of_two_tokenizers_do_not_mix(shards: Path, tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        folders.append(Path(shutil.copytree(shards, tmp_path / name)))
        write_manifest(folders[-1], replace(read_manifest(folders[-1]), tokenizer_sha256=name))
    [problem] = find_data_problems(config(one=folders[0], two=folders[1]), VOCAB, needs_heldout=False)
    assert problem == f"data.sources: {folders[0]} and {folders[1]} were made with different tokenizers; tokenize them with one"


def test_evaluation_needs_held_out_documents(tmp_path: Path) -> None:
    write_corpus(tmp_path / "shards", Spec(n_documents=20, heldout_frac=0.0))
    data = config(a=tmp_path / "shards")
    assert find_data_problems(data, VOCAB, needs_heldout=False) == []
    [problem] = find_data_problems(data, VOCAB, needs_heldout=True)
    assert problem.startswith("eval.eval_every is set, but no source holds documents out; write the manifest with heldout_frac")
