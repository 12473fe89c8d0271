"""Looking into shards and runs: what `when` says of a document, `batch` shows at that step and row, and both are what training saw."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_tools.inspect import batch as inspect_batch
from data_tools.inspect import show as inspect_shards
from data_tools.inspect import when as inspect_document
from data_tools.inspect.run_order import open_run
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import Loader
from olmo_train.data.shards import Corpus
from olmo_train.errors import EXIT_USAGE, run_command
from olmo_train.schema import load_config, to_yaml
from olmo_train.tokenizer import Tokenizer
from tests.data_tools.texts import make_documents, refusal, tokenize, write_lines
from tests.runs import run_training, small

N_STEPS, N_ROWS, SEQ_LEN = 10, 16, 16
SIGHTING = re.compile(
    r"  step (\d+) row (\d+) epoch (\d+): tokens \[(\d+), (\d+)\) at columns \[(\d+), (\d+)\)(; first checkpoint after it: step (\d+))?"
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Shards of a small corpus: a run of ten steps sees some of it twice."""
    folder = tmp_path_factory.mktemp("inspect")
    documents = [d | {"id": f"{d['source']}/{n}"} for n, d in enumerate(make_documents(40, seed=3))]
    path = write_lines(folder / "some.jsonl", documents)
    return tokenize(path, tokenizer, folder / "shards", "heldout_frac=0.1", "max_tokens_per_file=800")


@pytest.fixture(scope="module")
def run(own: Path) -> Path:
    """A finished run, with checkpoints of steps 5 and 10."""
    run_dir = own.parent / "run"
    run_training(small(own, run_dir, "model.vocab_size=300"))
    return run_dir


def planned(run_dir: Path, shards: Path, *overrides: str) -> str:
    """A folder with a config alone, as a run leaves it that has not started."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(to_yaml(load_config("train", TrainConfig, small(shards, run_dir, *overrides))))
    return str(run_dir)


def ids_of(shards: Path) -> list[str]:
    return [file.index.row(n).id for file in Corpus(shards).files for n in range(file.entry.documents)]


def output(capsys: pytest.CaptureFixture[str], main, *argv: object) -> list[str]:  # type: ignore[no-untyped-def]
    capsys.readouterr()
    main([str(word) for word in argv])
    return capsys.readouterr().out.splitlines()


# ---- runs ------------------------------------------------------------------------------------------------------------------


def test_where_a_document_was_seen_its_batch_shows_it(run: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked = 0
    for document in np.random.default_rng(0).permutation(ids_of(own))[:12].tolist():
        for line in output(capsys, inspect_document.main, run, document)[1:]:
            match = SIGHTING.fullmatch(line)
            if match is None:
                assert line in ("  held out: no step sees it", f"  no step up to {N_STEPS} sees it")
                continue
            step, row, epoch, start, end, column, column_end = (int(match[i]) for i in range(1, 8))
            head, *spans = output(capsys, inspect_batch.main, run, step, "--row", row)
            assert head == f"step {step} row {row}: source demo, epoch {epoch}"
            wanted = f"  columns [{column}, {column_end})  tokens [{start}, {end}) of {document}  ("
            assert sum(span.startswith(wanted) for span in spans) == 1
            checked += 1
    assert checked > 12


def test_what_a_batch_shows_is_what_when_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, inspect_batch.main, run, 7)
    step_and_row, seen = "", 0
    for line in lines:
        if line.startswith("step"):
            step_and_row = line.split(":")[0]
            continue
        match = re.fullmatch(r"  columns (\S+, \S+\))  tokens (\S+, \S+\)) of (\S+)  \(.*\)", line)
        assert match is not None
        told = output(capsys, inspect_document.main, run, match[3])
        assert any(t.startswith(f"  {step_and_row} epoch ") and f": tokens {match[2]} at columns {match[1]}" in t for t in told)
        seen += 1
    assert seen >= N_ROWS


def test_what_the_run_left_out_is_marked_from_the_step_on(run: Path, own: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    seen = output(capsys, inspect_batch.main, run, 7, "--row", 2)[1]
    document = re.search(r" of (\S+)  \(", seen)[1]  # type: ignore[index]
    plain = output(capsys, inspect_document.main, run, document, "--steps", 40)
    folder = planned(tmp_path / "without", own, f"data.without={{documents: [{document}], after_step: 6}}", "max_tokens=10240")
    config, order = open_run(folder)
    loader, checked = Loader(order, config.data, 0, 1), set()
    for line in output(capsys, inspect_document.main, folder, document, "--steps", 40):
        match = re.fullmatch(r"  step (\d+) row (\d+) (.*?)(; left out \(data.without\))?", line)
        if match is not None:
            rows = loader.read(int(match[1]))
            is_gone = rows.without is not None and rows.without[int(match[2]), 0] > 0
            assert is_gone == (match[4] is not None) == (int(match[1]) > 6)
            checked.add(is_gone)
            batch = output(capsys, inspect_batch.main, folder, match[1], "--row", match[2])
            for row in batch[1:]:
                assert row.endswith("; left out (data.without)") == (is_gone and f" of {document}  (" in row)
            line = line.removesuffix("; left out (data.without)")
        assert any(other.startswith(line) for other in plain)
    assert checked == {True, False}


def test_the_order_of_the_folder_alone_is_what_the_run_recorded(run: Path) -> None:
    config, order = open_run(str(run))
    loader = Loader(order, config.data, 0, 1)
    ledger = [json.loads(line) for line in (run / "data.jsonl").read_text().splitlines()]
    assert [line["checksum"] for line in ledger] == [loader.read(step).checksum(0) for step in range(1, N_STEPS + 1)]


def test_a_batch_shows_the_text_that_training_read(run: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, order = open_run(str(run))
    tokenizer = Tokenizer(own / "tokenizer.json")
    rows = Loader(order, config.data, 0, 1).read(4)
    lines = output(capsys, inspect_batch.main, run, 4, "--text")
    for row in range(N_ROWS):
        head, *spans = output(capsys, inspect_batch.main, run, 4, "--row", row, "--text")
        assert "\n".join([head, *spans]) in "\n".join(lines)
        heads = [line for line in spans if line.startswith("  columns [")]
        places = [[int(n) for n in re.findall(r"\d+", line)[:2]] for line in heads]
        assert [a for a, _ in places] == [0, *[b for _, b in places[:-1]]]  # documents cover the row, one after the other
        assert places[-1][1] == SEQ_LEN
        texts = ["    " + tokenizer.decode(rows.ids[row, a:b]).replace("\n", "\n    ") for a, b in places]
        assert "\n".join(spans) == "\n".join(f"{line}\n{text}" for line, text in zip(heads, texts, strict=True))


def test_a_batch_names_file_and_line_of_each_document(run: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = Corpus(own)
    for line in output(capsys, inspect_batch.main, run, 1):
        match = re.search(r" of (\S+)  \((\S+) line (\d+); (\S+) at (\d+)\)", line)
        if match is None:
            continue
        ((number, ordinal),) = corpus.find_document(match[1])
        row = corpus.files[number].index.row(ordinal)
        place = (row.src, str(row.loc), Path(corpus.files[number].entry.path).name, str(row.start))
        assert match.groups()[1:] == place


def test_the_first_checkpoint_after_a_sighting_is_named(run: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(p.name for p in (run / "steps").iterdir()) == ["step00000005", "step00000010"]
    steps = set()
    for document in ids_of(own):
        for line in output(capsys, inspect_document.main, run, document, "--steps", 14)[1:]:
            if match := SIGHTING.fullmatch(line):
                step, after = int(match[1]), match[9]
                steps.add(step)
                assert after == ("5" if step <= 5 else "10" if step <= 10 else None)
    assert steps == set(range(1, 15))


def test_steps_limit_what_is_looked_at(run: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unseen = 0
    for document in ids_of(own):
        whole = output(capsys, inspect_document.main, run, document)
        first = output(capsys, inspect_document.main, run, document, "--steps", 1)
        kept = [line for line in whole[1:] if line.startswith("  step 1 ")]
        if first[1] == "  no step up to 1 sees it":
            unseen += 1
            assert kept == []
        elif first[1] != "  held out: no step sees it":
            assert first[1:] == kept
        assert first[0] == whole[0]
    assert unseen > 0


def test_a_held_out_document_is_seen_by_no_step(run: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = 0
    for file in Corpus(own).files:
        for n in range(file.entry.documents):
            row = file.index.row(n)
            if file.index.train_position(row.start) is None:
                lines = output(capsys, inspect_document.main, run, row.id, "--steps", 1000)
                place = f"{row.end - row.start} tokens at {Path(file.entry.path).name} [{row.start}, {row.end})"
                assert lines == [f"{row.id}: {place}", "  held out: no step sees it"]
                held += 1
    assert held > 0


def test_steps_and_rows_that_do_not_exist_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (0, -1, N_STEPS + 1):
        message = refusal(inspect_batch.main, [str(run), str(step)], capsys)
        assert message == f"step={step} is not in 1 .. {N_STEPS}, the steps of {run}"
    for row in (-1, N_ROWS):
        message = refusal(inspect_batch.main, [str(run), "1", "--row", str(row)], capsys)
        assert message == f"--row={row} is not in 0 .. {N_ROWS - 1}, the rows of a batch"
    for steps in (0, -3):
        message = refusal(inspect_document.main, [str(run), "x", "--steps", str(steps)], capsys)
        assert message == f"--steps={steps} must be positive; steps count from 1"


def test_an_unknown_document_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(inspect_document.main, [str(run), "a/1000"], capsys)
    assert message == f"id=a/1000: no document of {run} has this id; `olmo data batch {run} 1` shows some"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = f"{tmp_path}/config.yaml does not exist; it is written when a run starts"
    assert refusal(inspect_batch.main, [str(tmp_path), "1"], capsys) == message
    assert refusal(inspect_document.main, [str(tmp_path), "x"], capsys) == message


def test_text_needs_a_tokenizer_and_shards_need_to_be_there(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = planned(tmp_path / "run", shards)
    message = refusal(inspect_batch.main, [folder, "1", "--text"], capsys)
    assert message == "--text: no manifest of this run names a tokenizer"
    assert run_command(inspect_batch.main, [folder, "1"]) == 0
    gone = planned(tmp_path / "gone", shards, f"data.sources.demo.path={tmp_path}/nowhere")
    assert refusal(inspect_batch.main, [gone, "1"], capsys).startswith(
        f"{tmp_path}/nowhere/manifest.json does not exist; write it"
    )


def test_a_document_of_two_sources_is_told_for_each(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"id": "same", "text": s * 30, "source": s} for s in ("x", "y")]
    shards = tokenize(write_lines(tmp_path / "d.jsonl", lines), tokenizer, tmp_path / "shards", "heldout_frac=0")
    folder = planned(tmp_path / "run", shards, "model.vocab_size=300", "data.seq_len=4", "data.micro_batch_size=4")
    told = output(capsys, inspect_document.main, folder, "same", "--steps", 1)
    assert [line for line in told if line.startswith("same: ")] == [
        f"same: {file.entry.tokens} tokens at part-00000.npy [0, {file.entry.tokens})" for file in Corpus(shards).files
    ]


# ---- shards ----------------------------------------------------------------------------------------------------------------


def test_show_prints_sources_and_files(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Corpus(own).manifest
    head, *lines = output(capsys, inspect_shards.main, own)
    assert head == f"{own}: uint16, 300 ids, end of text 0, fingerprint {manifest.fingerprint()[:16]}..."
    assert [line.split()[0] for line in lines[:2]] == ["a", "b"]
    for line, row in zip(lines, manifest.totals().values(), strict=False):
        numbers = [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", line)]
        assert numbers == [row["documents"], row["tokens"], row["heldout_tokens"]]
    assert lines[2:] == [f"  file {n}: {entry.path} {entry.tokens:,} tokens" for n, entry in enumerate(manifest.files)]


def test_show_finds_a_document_by_id_and_by_every_place_in_it(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, tokenizer = Corpus(own), Tokenizer(own / "tokenizer.json")
    splits = set()
    for number, file in enumerate(corpus.files):
        for ordinal in range(0, file.entry.documents, 2):
            row = file.index.row(ordinal)
            lines = output(capsys, inspect_shards.main, own, "--id", row.id)
            for offset in (row.start, (row.start + row.end) // 2, row.end - 1):
                assert output(capsys, inspect_shards.main, own, "--file", number, "--offset", offset) == lines
            split = "train" if file.index.train_position(row.start) is not None else "held out"
            splits.add(split)
            assert lines[:4] == [
                f"id      {row.id}",
                f"source  {file.entry.source} ({row.src} line {row.loc})",
                f"place   file {number} ({file.entry.path}), tokens [{row.start}, {row.end}), {split}",
                "",
            ]
            assert "\n".join(lines[4:]) == tokenizer.decode(file.read(row.start, row.end))
    assert splits == {"train", "held out"}


def test_show_prints_ids_where_there_is_no_tokenizer(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Corpus(shards).files[0]
    row = file.index.row(0)
    assert output(capsys, inspect_shards.main, shards, "--id", row.id)[-1] == str(file.read(row.start, row.end).tolist())


def test_show_refuses_what_is_not_there(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = Corpus(own)
    n, tokens = len(corpus.files), corpus.files[0].entry.tokens
    for words, message in {
        ("--id", "x"): f"--id=x: no document of {own} has this id; the ids stand in the third column of the .csv.gz files",
        ("--file", "0"): "--file and --offset go together",
        ("--offset", "0"): "--file and --offset go together",
        ("--file", str(n), "--offset", "0"): f"--file={n} is not in 0 .. {n - 1}",
        ("--file", "-1", "--offset", "0"): f"--file=-1 is not in 0 .. {n - 1}",
        ("--file", "0", "--offset", str(tokens)): f"--offset={tokens} is not in 0 .. {tokens - 1}, the tokens of file 0",
        ("--file", "0", "--offset", "-1"): f"--offset=-1 is not in 0 .. {tokens - 1}, the tokens of file 0",
    }.items():
        assert refusal(inspect_shards.main, [str(own), *words], capsys) == message
    assert refusal(inspect_shards.main, [str(tmp_path)], capsys).startswith(f"{tmp_path}/manifest.json does not exist; write it")


def test_arguments_that_are_none_end_in_the_same_exit_status() -> None:
    for main, argv in ((inspect_batch.main, ["run", "one"]), (inspect_document.main, ["run"]), (inspect_shards.main, [])):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == EXIT_USAGE
