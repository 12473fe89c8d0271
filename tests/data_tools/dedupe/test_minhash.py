"""Near-duplicates are what brute force finds, by however many processes, in however little memory, killed or not."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.datasets import DocumentFile, read_attributes
from data_tools.dedupe import minhash, sorted_pairs
from data_tools.dedupe.clusters import connect
from data_tools.dedupe.config import MinhashConfig
from data_tools.dedupe.minhash import minhash_problems
from data_tools.dedupe.signatures import Hasher
from data_tools.dedupe.sorted_pairs import MOST, PairWriter, read_pairs
from data_tools.documents import LONG, Line
from data_tools.files import LineWriter
from data_tools.work.config import StageConfig
from data_tools.work.stage import Plan, Stage
from tests.data_tools.dedupe.minhash_runs import config_of, edited, jaccard, read_all, results, run, shingles, words
from tests.data_tools.texts import write_lines

COMMAND = [sys.executable, "-m", "tests.data_tools.dedupe.minhash_runs"]


class Pieces(Line):
    """A document that is read in the pieces given."""

    def __init__(self, *pieces: str) -> None:
        super().__init__("x", "s", "".join(pieces), b"", "x", 1)
        self._pieces = pieces

    def pieces(self, size: int = 0) -> Any:
        """As given."""
        return iter(self._pieces)


def values_of(hasher: Hasher, *pieces: str) -> list[int]:
    """The keys, then the values."""
    keys, n_bytes, n_chars = hasher.hash(Pieces(*pieces))
    assert (n_bytes, n_chars) == (len("".join(pieces).encode()), len("".join(pieces)))
    return [*keys.tolist(), *hasher.least.tolist()]


# ---- signatures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The quick (brown) fox jumps over it", "the QUICK brown\tfox --- jumps\nover «it».", True),
        ("the quick brown fox jumps over it", "the quick brown fox jumps over its", False),
        ("the quick brown fox jumps over it", "the quick brown fox jump sover it", False),
        ("ein schöner Tag für uns alle hier", "ein schoner Tag fur uns alle hier", False),
        ("日本語の文章、です。", "日本 語の\n文章です", True),
        ("日本語の文章です", "日本語の文章だ", False),
        ("ข้อความภาษาไทย", "ข้อความภาษาลาว", False),
        ("한국어 문장 하나 둘 셋 넷", "한국 어문장 하나 둘 셋 넷", False),
        ("a b", "a b", True),
        ("a b", "a  B!", True),
        ("a b", "b a", False),
        ("a b", "a b a", False),
        ("a b c d e", "a b c d e", True),
        ("a b c d e", "a b c d e f", False),
        ("a b c d e f", "f a b c d e", False),
    ],
)
def test_documents_are_the_same_by_their_words(one: str, other: str, same: bool) -> None:
    hasher = Hasher(MinhashConfig())
    assert (values_of(hasher, one)[0] == values_of(hasher, other)[0]) is same


def test_a_document_is_the_same_in_whatever_pieces_it_comes() -> None:
    rng = np.random.default_rng(0)
    hasher = Hasher(MinhashConfig(bands=3, rows=2))
    text = " ".join(rng.choice(["über", "日本語。", "😀x", "Word", "\t", "\u2003", "naïve", "𠀀𠀁", "don't"], 300).tolist())
    whole = values_of(hasher, text)
    assert len(set(whole)) > 6
    for cuts in (range(1, len(text)), [0, len(text)], sorted(rng.choice(len(text), 40).tolist())):
        ends = [0, *cuts, len(text)]
        assert values_of(hasher, *(text[a:b] for a, b in pairwise(ends))) == whole


def test_documents_without_a_word_have_no_keys_and_short_ones_one() -> None:
    hasher = Hasher(MinhashConfig(bands=4, rows=2))
    assert [len(hasher.hash(Pieces(text))[0]) for text in ("", " \n--- \u2026", "a", "a b c d e", "a b c d e f")] == [
        0,
        0,
        1,
        1,
        4,
    ]


def test_equal_values_are_as_many_as_the_jaccard_similarity_and_bands_match_as_in_theory() -> None:
    """Within four standard errors, over pairs of documents with the same similarity."""
    bands, rows, n_pairs = 5, 4, 400
    hasher = Hasher(MinhashConfig(shingle=1, bands=bands, rows=rows))
    rng = np.random.default_rng(3)
    for shared, own in ((30, 30), (60, 15), (95, 3)):
        similarity = shared / (shared + 2 * own)
        equal = matched = 0
        for _ in range(n_pairs):
            names = [f"t{i}" for i in rng.choice(10**6, shared + 2 * own, replace=False)]
            one, other = (values_of(hasher, " ".join(names[:shared] + more)) for more in (names[shared:-own], names[-own:]))
            equal += np.sum(np.equal(one[bands:], other[bands:]))
            matched += any(np.equal(one[:bands], other[:bands]))
        n_values = n_pairs * bands * rows
        assert abs(equal / n_values - similarity) < 4 * np.sqrt(similarity * (1 - similarity) / n_values)
        expected = 1 - (1 - similarity**rows) ** bands
        assert abs(matched / n_pairs - expected) < 4 * np.sqrt(expected * (1 - expected) / n_pairs)


def test_tokens_of_a_tokenizer_take_the_place_of_words(tokenizer: Path) -> None:
    config = MinhashConfig(tokenizer=str(tokenizer))
    hasher, text = Hasher(config), "the fox jumps naïve"
    assert values_of(hasher, text) == values_of(hasher, text)
    assert values_of(hasher, text)[0] != values_of(hasher, text.upper())[0]
    assert values_of(hasher, "")[0] == 2**32 - 1  # no key: the first value


# ---- components ------------------------------------------------------------------------------------------------------------


def brute_force(edges: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Each node, and the smallest of its component."""
    label = {node: node for edge in edges for node in edge}
    changed = True
    while changed:
        changed = False
        for a, b in edges:
            least = min(label[a], label[b])
            changed |= label[a] != least or label[b] != least
            label[a] = label[b] = least
    return label


def graph(name: str) -> list[tuple[int, int]]:
    rng = np.random.default_rng(5)
    big = 1 << 57  # beyond what a float tells apart
    match name:
        case "random":
            edges = [(big + a, big + b) for a, b in rng.integers(0, 110, (80, 2)).tolist()]
        case "path":
            order = rng.permutation(60).tolist()
            edges = list(pairwise(order))
        case "hub":
            edges = [(7, int(i)) for i in rng.permutation(150)] + [(i, i + 1) for i in range(200, 205)]
        case _:
            edges = []
    return [edge for edge in edges if edge[0] != edge[1]]


@pytest.mark.parametrize("most", [30, 10_000])
@pytest.mark.parametrize("name", ["random", "path", "hub", "none"])
def test_components_are_those_of_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
    """In memory, and by rounds on disk in which one node has many more edges than fit into memory."""
    monkeypatch.setattr(sorted_pairs, "RUN", 64)
    edges = graph(name)
    larger, smaller = np.array([(max(edge), min(edge)) for edge in edges], np.uint64).reshape(-1, 2).T
    files = []
    for i in range(3):
        writer = PairWriter(tmp_path / f"{i}.pairs")
        writer.add(larger[i::3], smaller[i::3])
        writer.add(larger[:5], smaller[:5])  # some more than once
        writer.close()
        files.append(tmp_path / f"{i}.pairs")
    config = StageConfig(processes=1)
    with Stage(tmp_path / "stage", Plan("x", {}, []), config) as stage:
        found = connect(stage, files, tmp_path / "scratch", most)
    roots, nodes = (each.tolist() for each in read_pairs(found, 0, MOST))
    stars = [(node, root) for node, root in zip(nodes, roots, strict=True) if root < node]
    expected = {node: root for node, root in brute_force(edges).items() if node != root}
    assert (dict(stars), len(stars)) == (expected, len(expected))


# ---- whole runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 4 files: 40 texts, each with a copy with 1 of 100 words replaced and one with 40, some exact copies, empty
    documents, short ones, and lines that are none."""
    rng = np.random.default_rng(1)
    documents = []
    for i in range(40):
        base = words(rng, int(rng.integers(60, 400)))
        texts = [base, edited(rng, base, max(1, len(base) // 100)), edited(rng, base, 2 * len(base) // 5), words(rng, 30)]
        documents += [{"id": f"{i}.{k}", "source": "web", "text": " ".join(text)} for k, text in enumerate(texts)]
        if i % 6 == 0:
            documents.append({"id": f"{i}.exact", "source": "books", "text": " ".join(base)})
        if i % 10 == 0:
            documents.append({"id": f"{i}.empty", "source": "web", "text": ["", " \n", "--"][i // 10 % 3]})
            documents.append({"id": f"{i}.short", "source": "web", "text": ["one two", "two one", "One two."][i // 10 % 3]})
    order = rng.permutation(len(documents)).tolist()
    folder = tmp_path_factory.mktemp("corpus")
    for file in range(4):
        path = write_lines(folder / f"documents/{'ab'[file % 2]}/{file}.jsonl", [documents[i] for i in order[file::4]])
        path.write_bytes(b"\n" * file + path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def finished(corpus: Path) -> Path:
    """After a run by one process."""
    run(config_of(corpus, priority=["books"]))
    return corpus


def place(document: dict[str, Any]) -> tuple[bool, str, int]:
    return document["source"] != "books", document["path"], document["line"]


def documents_of(dataset: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted((dataset / "documents").rglob("*.jsonl")):
        for number, document in enumerate(path.read_text().split("\n"), 1):
            if document:
                values = json.loads(document)
                found[values["id"]] = {**values, "path": str(path), "line": number}
    return found


def test_clusters_are_those_of_brute_force_and_the_first_is_kept(finished: Path) -> None:
    documents = documents_of(finished)
    sets = {
        id: shingles(document["text"].lower().replace(".", ""))
        for id, document in documents.items()
        if document["text"].strip(" \n-")
    }
    edges = [(a, b) for a, b in combinations(sets, 2) if len(sets[a] & sets[b]) > 0.75 * len(sets[a] | sets[b])]
    found = {d["id"]: d for d in read_all(finished / "stages/near/duplicates")}
    members: dict[str, set[str]] = {}
    for id, duplicate in found.items():
        members.setdefault(duplicate["kept"]["id"], {duplicate["kept"]["id"]}).add(id)
    clusters = {frozenset(each) for each in members.values()}
    label = {id: id for id in sets}
    for a, b in edges * 3:
        label[a] = label[b] = min(label[a], label[b])
    groups: dict[str, set[str]] = {}
    for id, first in label.items():
        groups.setdefault(first, set()).add(id)
    assert clusters == {frozenset(group) for group in groups.values() if len(group) > 1}
    assert len(clusters) == 41
    for kept, cluster in members.items():
        assert min(cluster, key=lambda id: place(documents[id])) == kept
        for id in cluster - {kept}:
            duplicate, document = found[id], documents[id]
            assert duplicate["cluster_size"] == len(cluster)
            assert (duplicate["path"], duplicate["line"]) == (document["path"], document["line"])
            assert duplicate["reason"] == "minhash"
            assert duplicate["kept"] == {name: documents[kept][name] for name in ("id", "source", "path", "line")}
            if len(sets[id]) > 1:
                assert abs(duplicate["similarity"] - jaccard(document["text"], documents[kept]["text"])) < 0.16
    assert {c["kept"]["id"].split(".")[1] for c in found.values() if int(c["kept"]["id"].split(".")[0]) % 6 == 0} >= {"exact"}


def test_attributes_go_line_for_line_and_totals_add_up(corpus: Path, finished: Path) -> None:
    documents = documents_of(finished)
    found = {d["id"]: d for d in read_all(finished / "stages/near/duplicates")}
    for path in sorted((finished / "documents").rglob("*.jsonl")):
        lines = list(
            read_attributes(DocumentFile(str(finished), str(path.relative_to(finished / "documents"))).attributes("near"))
        )
        assert [id for id, _ in lines] == [d["id"] for d in documents.values() if d["path"] == str(path)]
        for id, attributes in lines:
            size = len(documents[id]["text"])
            assert attributes.get("near__minhash__duplicate") == ([[0, size, 1.0]] if id in found else None)
            if id in found:
                assert attributes["near__minhash__similarity"] == [[0, size, found[id]["similarity"]]]
                assert attributes["near__minhash__cluster_size"] == [[0, size, found[id]["cluster_size"]]]
    totals = run(config_of(corpus, priority=["books"]))
    assert totals["documents_in"] == len(documents) == totals["documents_out"] + len(found)
    assert totals["text_bytes_in"] == sum(len(d["text"]) for d in documents.values())
    assert totals["documents_duplicate"] == len(found)
    assert totals["text_bytes_out"] == sum(len(d["text"]) for id, d in documents.items() if id not in found)
    assert sum(row["documents"] for row in totals["by_source"].values()) == totals["documents_out"]
    assert (totals["documents_without_words"], totals["short_documents"], totals["clusters"]) == (4, 4, 41)


def copy_of(corpus: Path, folder: Path) -> Path:
    """The same dataset under a path of the same length, so that records are the same."""
    shutil.copytree(corpus / "documents", folder / "documents")
    return folder


def without_paths(dataset: Path) -> list[Any]:
    told = [{**line, "path": "", "kept": {**line["kept"], "path": ""}} for line in read_all(dataset / "stages/near/duplicates")]
    return [told, {name: data for name, data in results(dataset).items() if name.startswith("attributes")}]


def test_little_memory_gives_the_same_bytes(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_pairs, "PAIR_BYTES", 400_000)  # 41 pairs in memory, less than there are edges
    monkeypatch.setattr(sorted_pairs, "RUN", 500)
    monkeypatch.setattr(minhash, "WINDOW", 7)
    little = copy_of(finished, tmp_path / "little")
    run(config_of(little, priority=["books"], memory_mb=100))
    assert (little / "stages/near/parts/small-star-1").exists()
    assert without_paths(little) == without_paths(finished)


def test_a_killed_run_goes_on_in_two_processes_to_the_same_end(finished: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "killed"
    (dataset / "documents").mkdir(parents=True)
    for path in sorted((finished / "documents").rglob("*.jsonl")):
        for i, line in enumerate(path.read_bytes().split(b"\n")):
            with open(dataset / f"documents/{i % 12:02d}.jsonl", "ab") as out:
                out.write(line + b"\n")
    whole = copy_of(dataset, tmp_path / "whole")
    run(config_of(whole))
    process = subprocess.Popen([*COMMAND, str(dataset)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parts = dataset / "stages/near/parts/signatures"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = {record: record.stat().st_mtime_ns for record in parts.glob("*.json")}
    assert 2 <= len(before) < 12
    run(config_of(dataset, processes=2))
    assert {record: record.stat().st_mtime_ns for record in before} == before
    assert without_paths(dataset) == without_paths(whole)


def test_a_long_document_and_its_copy_are_one_cluster(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    text = words(rng, 60_000) * 16
    with LineWriter(tmp_path / "documents/long.jsonl.gz") as writer:
        for id, each in (("a", text), ("b", [*text, "end"]), ("c", words(rng, 100))):
            writer.write(b'{"id": "%b", "source": "s", "text": "%b"}' % (id.encode(), " ".join(each).encode()))
    assert len(" ".join(text)) > LONG
    run(config_of(tmp_path, {"bands": 4, "rows": 2}))
    assert [(d["id"], d["kept"]["id"], d["similarity"]) for d in read_all(tmp_path / "stages/near/duplicates")] == [
        ("b", "a", 1.0)
    ]


def test_every_candidate_counts_without_a_least_similarity(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    base = words(rng, 200)
    texts = [base, edited(rng, base, 20)]
    write_lines(tmp_path / "documents/x.jsonl", [{"id": str(i), "source": "s", "text": " ".join(t)} for i, t in enumerate(texts)])
    assert 0.3 < jaccard(*map(" ".join, texts)) < 0.6
    loose = run(config_of(tmp_path, {"bands": 50, "rows": 2, "min_similarity": 0.0}))
    shutil.rmtree(tmp_path / "stages")
    strict = run(config_of(tmp_path, {"bands": 50, "rows": 2}))
    assert [t["documents_out"] for t in (loose, strict)] == [1, 2]
    assert [(t["candidate_pairs"], t["similar_pairs"]) for t in (loose, strict)] == [(1, 1), (1, 0)]


# ---- refusals --------------------------------------------------------------------------------------------------------------


def test_bad_fields_are_told_together() -> None:
    config = MinhashConfig(shingle=0, bands=257, rows=0, min_similarity=1.1, seed=-1, tokenizer="nowhere.json")
    assert minhash_problems(config) == [
        "minhash.shingle=0 is not in 1 .. 1000",
        "minhash.bands=257 is not in 1 .. 256",
        "minhash.rows=0 is not in 1 .. 64",
        "minhash.min_similarity=1.1 is not in [0, 1]",
        "minhash.seed=-1 must not be negative",
        "minhash.tokenizer=nowhere.json does not exist; give a tokenizer.json, or null for words",
    ]
    assert minhash_problems(MinhashConfig()) == []
