import json
import random
from pathlib import Path

import pytest

from data_tools.trace.count import count_documents, count_tokens, main
from data_tools.trace.questions import Asked
from data_tools.trace.searcher import Searcher
from olmo_train.data.document_index import is_heldout
from tests.data_tools.texts import refusal
from tests.data_tools.trace.small_corpora import SHAPES, SmallCorpus, queries, small_corpus
from tests.data_tools.trace.traced import COPIED, HELDOUT, HIDDEN, KEPT, PLANTED, SECRET, Traced, opened


@pytest.fixture(params=SHAPES)
def corpus(request: pytest.FixtureRequest) -> SmallCorpus:
    return small_corpus(request.param)


def check_count(searcher: Searcher, corpus: SmallCorpus, ids: list[int]) -> None:
    counted = count_tokens(searcher, Asked(None, ids))
    there = corpus.occurrences(ids)
    assert (counted.count, counted.documents) == (len(there), len({name for name, _ in there}))
    assert counted.heldout_count == len(corpus.occurrences(ids, heldout=True))
    for number, source in enumerate(("a", "b")):
        names = [name for name, _ in there if int(name[1:]) % 2 == number]
        told = counted.sources.get(source)
        assert (told.count, told.documents) == (len(names), len(set(names))) if told else not names


def test_counts_are_those_of_brute_force(corpus: SmallCorpus) -> None:
    searcher = Searcher([corpus.index])
    for ids in queries(corpus, 150):
        check_count(searcher, corpus, ids)


def test_the_form_with_a_space_is_counted_beside(traced: Traced) -> None:
    searcher = opened(traced.run).searcher
    encode = searcher.tokenizer.encode_batch
    plain, spaced = (Asked(text, encode([text])[0]) for text in (PLANTED, f" {PLANTED}"))
    assert count_tokens(searcher, plain).spaced_count == count_tokens(searcher, spaced).count == 1
    assert count_tokens(searcher, spaced).spaced_count is None
    assert count_tokens(searcher, Asked(None, spaced.ids)).spaced_count is None


def test_blocked_documents_are_in_no_count(corpus: SmallCorpus) -> None:
    blocked = set(random.Random(0).sample(sorted(corpus.train) + sorted(corpus.heldout), 8))
    searcher, corpus = Searcher([corpus.index], blocked=blocked), corpus.without(blocked)
    for ids in queries(corpus, 100):
        check_count(searcher, corpus, ids)


def test_documents_that_hold_one_text_of_every_clause_are_those_of_brute_force(corpus: SmallCorpus) -> None:
    searcher, rng, asked = Searcher([corpus.index]), random.Random(0), list(queries(corpus, 200))
    for _ in range(40):
        clauses = [rng.sample(asked, rng.randint(1, 3)) for _ in range(rng.randint(1, 3))]
        held = [{name for ids in clause for name, _ in corpus.occurrences(ids)} for clause in clauses]
        assert count_documents(searcher, clauses) == len(set.intersection(*held))


def test_documents_are_not_counted_above_the_limit() -> None:
    corpus = small_corpus("16 bits")
    searcher = Searcher([corpus.index])
    ids = next(ids for ids in queries(corpus, 50) if len(corpus.occurrences(ids)) > 3)
    counted = count_tokens(searcher, Asked(None, ids), max_occurrences=3)
    assert counted.count == len(corpus.occurrences(ids))
    assert counted.documents is None
    assert all(source.documents is None for source in counted.sources.values())


def test_the_command_counts_texts_ids_and_lines(traced: Traced, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").write_text(f" {COPIED}\r\n {KEPT}\n")
    main(
        [
            str(traced.run),
            "--text",
            f" {PLANTED}",
            "--ids",
            "5",
            "--file",
            str(tmp_path / "texts"),
            "--json",
            str(tmp_path / "out"),
        ]
    )
    printed = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "out").read_text())
    documents = [json.loads(line) for line in traced.documents.read_text().splitlines()]
    lines = [document["text"] for document in documents if not is_heldout(document["id"], HELDOUT)]
    for answer, text in zip(found, (f" {PLANTED}", f" {COPIED}", f" {KEPT}"), strict=False):
        there = [line.count(text) for line in lines]
        assert (answer["text"], answer["count"], answer["documents"]) == (text, sum(there), sum(n > 0 for n in there))
    assert printed[0] == f'" {PLANTED}": 1 times in 1 documents; held out: 0'
    assert found[3]["ids"] == [5]
    main([str(traced.shards), "--text", f" {SECRET}", "--json", "-"])
    (secret,) = json.loads(capsys.readouterr().out)
    assert (secret["count"], secret["heldout_count"], secret["sources"]) == (0, 1, {})


def test_the_command_counts_documents_that_hold_texts(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    for words, n in (
        (["--holds", KEPT, f" {KEPT}"], 2),
        (["--holds", KEPT, f" {KEPT}", "--holds", f" {HIDDEN}"], 1),
        (["--holds", KEPT, "--holds", f" {PLANTED}"], 0),
    ):
        main([str(traced.shards), *words])
        assert capsys.readouterr().out.startswith(f"{n} training documents hold (")


def test_special_tokens_spelt_out_are_text(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(traced.shards), "--text", "<|endoftext|>", "--json", "-"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["count"] == 0
    assert len(found["ids"]) > 1


BAD = (
    ([], "nothing is asked about; give --text, --ids or --file"),
    (["--text", ""], "--text: the text is empty; give at least one character"),
    (["--ids", "1,x"], "--ids=1,x must be whole numbers with commas between them, e.g. --ids 12,7,300"),
    (["--ids", ""], "--ids= must be whole numbers with commas between them, e.g. --ids 12,7,300"),
    (["--ids", "1,400"], "--ids=1,400: 400 is not in the vocabulary of 400 ids"),
    (["--ids=-1"], "--ids=-1: -1 is not in the vocabulary of 400 ids"),
    (["--text", "a\ud800"], "--text: character 1 is half of a surrogate pair, which no document holds; give UTF-8"),
    (
        ["--file", "/nowhere"],
        "--file=/nowhere: [Errno 2] No such file or directory: '/nowhere'; give a text file in UTF-8, with a text per line",
    ),
    (["--text", "a", "--max-occurrences", "0"], "--max-occurrences=0 must be positive"),
    (["--text", "a", "word"], "word is no name=value; flags begin with --"),
    (
        ["--text", "a", "--json", "/nowhere/x"],
        "--json=/nowhere/x: No such file or directory; give a file in a folder that exists",
    ),
    (
        ["--holds", "a", "--text", "b"],
        "--holds counts documents of all its texts together; give --text, --ids or --file by themselves",
    ),
)


@pytest.mark.parametrize("words, message", BAD, ids=[message[:30] for _, message in BAD])
def test_what_cannot_be_counted_is_told(
    words: list[str], message: str, traced: Traced, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(main, [str(traced.shards), *words], capsys) == message


def test_all_problems_are_told_at_once(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(main, [str(traced.shards), "--text", "", "--ids", "1,x", "--ids", "99999", "--file", "/nowhere"], capsys)
    assert told.startswith("4 problems")


def test_a_text_too_frequent_for_counting_documents_is_told(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(main, [str(traced.shards), "--holds", " fox", "--max-occurrences", "3"], capsys)
    assert told.startswith("--max-occurrences=3: ids ")
    assert told.endswith(" times, and every occurrence is looked at; give a longer text, or a larger number")


def test_ids_are_counted_where_there_is_no_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    corpus = small_corpus("16 bits")
    main([str(corpus.shards), "--ids", "1,2"])
    assert capsys.readouterr().out.startswith(f"ids 1,2: {len(corpus.occurrences([1, 2]))} times in ")
    told = refusal(main, [str(corpus.shards), "--text", "a"], capsys)
    assert told.endswith("no manifest names a tokenizer; ask by ids, or write one into the manifest")
