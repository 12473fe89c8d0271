"""Held-out tokens are the run's own, or of the shards a user names; what does not fit is refused with everything wrong."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from checkpoints.inspect.heldout import Heldout, HeldoutOptions, read_heldout
from checkpoints.opening import Checkpoint, open_step_folder
from data_tools.tokenize import command as tokenize_corpus
from olmo_train.config.data import SourceConfig
from olmo_train.data.shards import Corpus
from olmo_train.errors import ConfigError
from tests.texts import TextCorpus


def test_rows_are_the_first_held_out_tokens_of_each_source(heldout: Heldout, corpus: TextCorpus) -> None:
    shards = Corpus(corpus.shards)
    assert heldout.seq_len == 16
    assert heldout.n_tokens == {f.entry.source: f.entry.heldout_tokens for f in shards.files}
    for source, file in zip(heldout.sources, shards.files, strict=True):
        pieces = file.index.heldout_pieces(0, file.entry.heldout_tokens)
        ids = np.concatenate([file.read(a, b) for a, b in pieces])
        rows = [source.rows.ids[r, : source.lengths_R[r]] for r in range(len(source.lengths_R))]
        assert np.concatenate(rows).tolist() == ids.tolist()
        assert source.token_bytes is not None


def test_a_limit_takes_whole_instances_from_the_front(newest: Checkpoint, heldout: Heldout) -> None:
    few = read_heldout(newest, HeldoutOptions(tokens_per_source=70))
    assert few.n_tokens == {"animals": 64, "places": 64}
    assert np.array_equal(few.sources[0].rows.ids, heldout.sources[0].rows.ids[:4])
    assert few.digest != heldout.digest
    assert read_heldout(newest, HeldoutOptions()).digest == heldout.digest
    short = read_heldout(newest, HeldoutOptions(tokens_per_source=64, seq_len=8))
    assert (short.seq_len, short.sources[0].rows.ids.shape) == (8, (8, 8))


def test_given_shards_take_the_place_of_the_runs(
    newest: Checkpoint, heldout: Heldout, corpus: TextCorpus, tmp_path: Path
) -> None:
    nameless = replace(newest, run=None)
    given = read_heldout(nameless, HeldoutOptions(shards=(corpus.shards,)))
    assert given.digest == heldout.digest
    moved = Path(shutil.copytree(corpus.shards, tmp_path / "moved"))
    both = read_heldout(nameless, HeldoutOptions(shards=(corpus.shards, moved)))
    assert [source.name for source in both.sources] == ["animals", "places", "moved/animals", "moved/places"]


def test_two_sources_of_a_run_with_the_same_corpus_are_told_apart(newest: Checkpoint, corpus: TextCorpus) -> None:
    assert newest.run is not None
    sources = {"one": SourceConfig(path=str(corpus.shards)), "two": SourceConfig(path=str(corpus.shards), select="places")}
    run = replace(newest.run, data=replace(newest.run.data, sources=sources, document_masking=True))
    found = read_heldout(replace(newest, run=run), HeldoutOptions())
    assert [source.name for source in found.sources] == ["animals", "places", "two/places"]
    assert found.sources[0].rows.documents is not None  # as the model was trained


def test_what_does_not_fit_is_refused_at_once(newest: Checkpoint, corpus: TextCorpus, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(corpus.tokenizer.read_text() + "\n")
    words = [f"documents=[{corpus.documents}]", f"tokenizer={tokenizer}", f"output={other}", "heldout_frac=0.1"]
    tokenize_corpus.main(words)
    small = replace(newest, model=replace(newest.model, vocab_size=299))
    with pytest.raises(ConfigError) as error:
        read_heldout(small, HeldoutOptions(shards=(corpus.shards, tmp_path / "nowhere")))
    assert len(error.value.problems) == 2
    assert "ids go up to 299, the model has 299 rows; give shards of its tokenizer" in error.value.problems[0]
    assert f"--shards={tmp_path / 'nowhere'}: " in error.value.problems[1]
    with pytest.raises(ConfigError, match=r"--shards=.*other was made with another tokenizer than .*; give shards of its own"):
        read_heldout(newest, HeldoutOptions(shards=(other,)))
    with pytest.raises(ConfigError, match="--tokens-per-source=15 must be at least one instance of 16 tokens"):
        read_heldout(newest, HeldoutOptions(tokens_per_source=15))
    with pytest.raises(ConfigError, match="does not say what it was trained on; give --shards FOLDER"):
        read_heldout(replace(newest, run=None), HeldoutOptions())
    whole = tmp_path / "whole"
    tokenize_corpus.main([f"documents=[{corpus.documents}]", f"tokenizer={tokenizer}", f"output={whole}", "heldout_frac=0"])
    with pytest.raises(ConfigError, match="no source holds documents out; give --shards FOLDER made with heldout_frac"):
        read_heldout(replace(newest, tokenizer=None), HeldoutOptions(shards=(whole,)))


def test_shards_that_moved_away_are_asked_for(copy: Path) -> None:
    config = copy / "steps/step00000010/config.yaml"
    checkpoint = open_step_folder(config.parent)
    assert checkpoint.run is not None
    text = config.read_text()
    config.write_text(text.replace(str(checkpoint.run.data.sources["demo"].path), str(copy / "gone")))
    with pytest.raises(ConfigError, match=r"the shards of its run cannot be read here: .*gone.*; give --shards FOLDER"):
        read_heldout(open_step_folder(config.parent), HeldoutOptions())
