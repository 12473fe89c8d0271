"""From documents to a model and back: documents -> tokenizer -> shards -> steps -> checkpoint -> text; document -> steps -> batch."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from checkpoints import report
from checkpoints.generate import command as generate
from checkpoints.publish import command as publish
from checkpoints.verify import command as verify_checkpoints
from data_tools.inspect import batch as inspect_batch
from data_tools.inspect import verify as verify_shards
from data_tools.inspect import when as inspect_document
from data_tools.inspect.run_order import open_run
from data_tools.tokenize import command as tokenize_corpus
from data_tools.tokenize import train_tokenizer
from data_tools.trace import build_index
from data_tools.trace.opening import load_trace_config, open_trace
from data_tools.trace.trace_text import trace_text
from olmo_train.data.loader import Loader, source_corpus
from olmo_train.tokenizer import Tokenizer
from tests.runs import losses, metrics, run_training

PLANTED = "The lighthouse keeper counted seventeen violet pelicans."
SENTENCES = [
    "the cat sees the dog.",
    "a red fish follows the river.",
    "and then it rained in the old house.",
    "birds do not care.",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on 400 documents, one of which holds the planted sentence."""
    folder = tmp_path_factory.mktemp("pipeline")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(400):
        text = " ".join(rng.choice(SENTENCES, int(rng.integers(3, 30))))
        if number == 123:
            text = f"{text} {PLANTED} {text}"
        lines.append(json.dumps({"id": f"doc-{number}", "text": text, "source": "tales" if number % 3 else "notes"}))
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    documents = f"documents=[{folder}/documents.jsonl]"
    train_tokenizer.main([documents, f"output={folder}/tokenizer.json", "vocab_size=320"])
    tokenize = [documents, f"tokenizer={folder}/tokenizer.json", f"output={folder}/shards", "heldout_frac=0.05"]
    tokenize_corpus.main([*tokenize, "max_tokens_per_file=5000"])
    tokens = sum(row["tokens"] for row in json.loads((folder / "shards/manifest.json").read_text())["totals"].values())
    run_training(
        [
            f"run_name={folder.name}", f"run_dir={folder}/run", f"data.sources.demo.path={folder}/shards", "model=tiny_moe",
            "model.vocab_size=320", "model.d_model=64", "model.n_layers=2", "model.moe.n_experts=4", "model.moe.top_k=2",
            "data.seq_len=32", "data.global_batch_size=512", "data.micro_batch_size=256", f"max_tokens={2 * tokens}",
            "optim.lr=1e-2", "optim.schedule.warmup_tokens=2048", "checkpoint.save_every=20", "eval.eval_every=50",
            "data.repetition_mask=null", "metrics.peak_flops=1e11",
        ],
        n_ranks=2,
    )  # fmt: skip
    return folder / "run"


def test_the_model_learns_the_language(run: Path) -> None:
    curve = losses(run)
    assert sum(curve[-5:]) / 5 < 0.5 * curve[0]
    heldout = [line["eval"]["heldout"]["all"] for line in metrics(run) if "eval" in line]
    assert heldout[-1]["loss"] < 0.5 * heldout[0]["loss"]
    assert heldout[-1]["bits_per_byte"] < heldout[0]["bits_per_byte"]


def test_everything_written_verifies(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify_shards.main([str(run.parent / "shards")])
    verify_checkpoints.main([str(run)])
    assert "as the manifest says" in capsys.readouterr().out


def test_what_is_published_verifies_and_can_be_trained_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = run.parent / "releases"
    publish.main([f"run={run}", f"target={target}", "optimizer_state=true"])
    verify_checkpoints.main([str(target)])
    assert "releases that fit together" in capsys.readouterr().out
    verify_checkpoints.main(
        [str(target), "--replay", "--from", "stage1-step20-tokens0B", "--shards", f"demo={run.parent / 'shards'}"]
    )
    assert "bit for bit" in capsys.readouterr().out
    generate.main([str(target / "main"), "--prompt", "the cat sees", "--max-tokens", "6", "--temperature", "0"])
    assert "the cat sees the dog." in capsys.readouterr().out


def test_the_last_checkpoint_writes_sentences_of_the_corpus(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate.main([str(run), "--prompt", "the cat sees", "--max-tokens", "6", "--temperature", "0"])
    assert "the cat sees the dog." in capsys.readouterr().out
    report.main([str(run)])
    assert "unigram entropy" in capsys.readouterr().out


def test_the_planted_sentence_leads_to_its_steps_and_they_to_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_document.main([str(run), "doc-123"])
    seen = re.findall(r"step (\d+) row (\d+) epoch (\d+): tokens \[(\d+), (\d+)\)", capsys.readouterr().out)
    for epoch in ("0", "1"):
        parts = {}
        for step, row, _, start, end in [s for s in seen if s[2] == epoch]:
            inspect_batch.main([str(run), step, "--row", row, "--text"])
            printed = capsys.readouterr().out
            assert f"epoch {epoch}" in printed
            parts[int(start)] = printed.split(f"tokens [{start}, {end}) of doc-123 ")[1].split("\n    ")[1].split("\n")[0]
        assert PLANTED in "".join(parts[start] for start in sorted(parts))


def test_a_sentence_leads_to_its_document_and_to_the_steps_that_saw_it(run: Path) -> None:
    build_index.main([f"shards={run.parent / 'shards'}", f"documents=[{run.parent / 'documents.jsonl'}]"])
    config, order = open_run(str(run))
    answer = trace_text(open_trace(str(run), load_trace_config([])), f"They say: {PLANTED} Nobody knows.")
    [span] = [span for span in answer.spans if PLANTED in span.text]
    assert (span.count, span.heldout_count) == (1, 0)
    [number] = span.documents
    document = answer.documents[number]
    assert document.id == "doc-123"
    [snippet] = [snippet for snippet in document.snippets if snippet.span == span.number]
    assert snippet.sighted is not None
    rows = {(sight.step, sight.row) for sight in snippet.sighted.sights}
    place = snippet.sighted.place
    by_reading = set()
    for step in range(1, config.max_tokens // config.data.global_batch_size + 1):
        for instance in order.batch(step):
            for piece in instance.pieces:
                is_file = order.sources[0].files.index(piece.file) == place.file
                if is_file and piece.start < place.offset + span.end - span.start and piece.end > place.offset:
                    by_reading.add((step, instance.row))
    assert rows == by_reading
    assert rows


def test_documents_lead_to_steps_to_batches_and_back(run: Path) -> None:
    """Every training document: what the loader of some rank reads at the named places are its very tokens."""
    config, order = open_run(str(run))
    corpus = source_corpus(config.data, "demo", run / "data")
    last = config.max_tokens // config.data.global_batch_size
    loaders = [Loader(order, config.data, rank, 4) for rank in range(4)]
    tokenizer = Tokenizer(corpus.tokenizer_path() or Path())
    texts = {d["id"]: d["text"] for d in map(json.loads, (run.parent / "documents.jsonl").read_text().splitlines())}
    rng = np.random.default_rng(1)
    heldout = 0
    for number in rng.permutation(400)[:60].tolist():
        [(file_number, ordinal)] = corpus.find_document(f"doc-{number}")
        file = order.sources[0].files[file_number]
        start, end = file.index.span(ordinal)
        ids = file.read(start, end)
        assert tokenizer.decode(ids[:-1]) == texts[f"doc-{number}"]
        sightings = order.sightings(file, start, end, last)
        heldout += file.index.train_position(start) is None
        assert file.index.train_position(start) is not None or sightings == []
        for s in sightings:
            rows = loaders[s.row // (order.rows // 4)].read(s.step)
            row = rows.ids[s.row % (order.rows // 4)]
            assert row[s.column_start : s.column_end].tolist() == ids[s.offset_start : s.offset_end].tolist()
            [instance] = order.batch(s.step, s.row, s.row + 1)
            names = [span.file.index.row(span.ordinal).id for span in order.documents(instance)]
            assert f"doc-{number}" in names
    assert heldout > 0
