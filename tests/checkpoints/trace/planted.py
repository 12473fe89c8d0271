"""A small run in which one document stands many times, and an index over its shards."""

import random
from dataclasses import dataclass
from pathlib import Path

from data_tools.documents import Document, write_documents
from data_tools.tokenize import command as tokenize_corpus
from data_tools.tokenize import train_tokenizer
from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from olmo_train.data.document_index import is_heldout
from tests.runs import run_training, small
from tests.texts import VOCAB, WORDS

HELDOUT = 0.3
N_DOCUMENTS = 500
N_COPIES = 250
STEPS = 60
PLANTED = "the wet stone follows a fish and then the old river hears it red bird small house a tree finds the dog stays wet cat"
"""Words of the others, in an order of its own."""


@dataclass(frozen=True)
class Planted:
    """Where the parts lie."""

    run: Path
    shards: Path
    documents: Path


def write_planted(folder: Path) -> Planted:
    """Documents of random words, N_COPIES of PLANTED among them, a run over them with checkpoints, and an index."""
    rng = random.Random(0)
    documents, tokenizer, shards = folder / "documents", folder / "tokenizer.json", folder / "shards"
    plain = [Document(f"plain {n}", " ".join(rng.choices(WORDS, k=rng.randint(20, 60))), "words") for n in range(N_DOCUMENTS)]
    names = [name for n in range(4 * N_COPIES) if not is_heldout(name := f"planted {n}", HELDOUT)][:N_COPIES]
    mixed = plain + [Document(name, PLANTED, "words") for name in names]
    rng.shuffle(mixed)
    write_documents(documents / "words.jsonl", iter(mixed))
    train_tokenizer.main([f"documents=[{documents}]", f"output={tokenizer}", f"vocab_size={VOCAB}"])
    words = [f"documents=[{documents}]", f"tokenizer={tokenizer}", f"output={shards}", f"heldout_frac={HELDOUT}"]
    tokenize_corpus.main(words)
    sizes = ["data.seq_len=32", "data.global_batch_size=512", "data.micro_batch_size=512", f"max_tokens={512 * STEPS}"]
    saves = ["checkpoint.save_every=10", "checkpoint.save_log_spaced=true", "optim.schedule.warmup_tokens=1024"]
    run = folder / "run"
    run_training(small(shards, run, f"model.vocab_size={VOCAB}", *sizes, *saves), 1)
    build(IndexConfig(shards=str(shards), processes=1))
    return Planted(run, shards, documents)
