"""What is written is read by others: as Dolma's tools read it, and by OLMo-core itself."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from data_tools.documents import read_documents
from olmo_train.data.shards import Corpus
from olmo_train.tokenizer import Tokenizer


def test_a_reader_of_dolmas_kind_finds_every_document(text_shards: Path, documents: Path, tokenizer: Path) -> None:
    """np.memmap beside a csv.gz of start,end,id,src,loc without header; no manifest, no index.

    Source: Dolma, python/dolma/tokenizer/memmap_writer.py.
    """
    wanted = {d.id: d for d in read_documents(documents)}
    made = Tokenizer(tokenizer)
    for path in sorted(text_shards.rglob("part-*.npy")):
        ids, at = np.memmap(path, mode="r", dtype=np.uint16), 0
        with gzip.open(path.with_suffix(".csv.gz"), "rt", encoding="utf-8", newline="") as file:
            for start, end, document_id, src, loc in csv.reader(file):
                assert (int(start), ids[int(end) - 1]) == (at, made.eos_id)
                document = wanted.pop(document_id)
                assert made.decode(ids[at : int(end) - 1]) == document.text
                assert (src, int(loc)) == (f"{documents.parent.name}/{documents.name}", document.line)
                at = int(end)
        assert at == len(ids)
    assert wanted == {}


@pytest.mark.slow
def test_olmo_core_reads_the_documents(text_shards: Path, tmp_path: Path) -> None:
    data = pytest.importorskip("olmo_core.data")
    corpus = Corpus(text_shards)
    eos = corpus.manifest.eos_id
    paths = [str(file.path) for file in corpus.files]
    names = data.TokenizerConfig(vocab_size=corpus.manifest.vocab_size, eos_token_id=eos, pad_token_id=eos)
    config = data.NumpyFSLDatasetConfig(
        tokenizer=names, paths=paths, sequence_length=32, dtype=data.NumpyDatasetDType.uint16, generate_doc_lengths=True,
        work_dir=str(tmp_path),
    )  # fmt: skip
    dataset = config.build()
    dataset.prepare()
    found = np.concatenate([np.asarray(dataset[i]["input_ids"]) for i in range(len(dataset))])
    wanted = np.concatenate([file.read(0, file.entry.tokens // 32 * 32) for file in corpus.files])
    assert np.array_equal(found, wanted)
