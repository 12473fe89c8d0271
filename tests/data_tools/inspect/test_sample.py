"""Samples: uniform, seeded, and as a page that no text can turn against its reader."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_tools.inspect import sample
from data_tools.inspect.sample_page import Shown, page_html
from tests.data_tools.inspect.pipeline import HOSTILE, Made
from tests.data_tools.texts import refusal, write_lines


class _Reader(HTMLParser):
    """Elements, attributes and texts of a page, as a browser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def page(tmp_path: Path, *words: object) -> str:
    sample.main([*map(str, words), "--out", str(tmp_path / "page.html")])
    return (tmp_path / "page.html").read_text()


def ids(text: str) -> list[str]:
    return re.findall(r"<h3><bdi>(.*?)</bdi>", text)


def test_a_seed_gives_one_sample_and_every_document_is_equally_likely(tmp_path: Path) -> None:
    rows = [{"id": str(i), "source": "s", "text": "x"} for i in range(100)]
    write_lines(tmp_path / "one/documents/a.jsonl", rows)
    counts = [0] * 100
    for seed in range(200):
        question = sample.Question(tmp_path / "one", 10, seed)
        seen, groups = sample.sample(question)
        assert (seen, len(groups[""])) == (100, 10)
        for shown in groups[""]:
            counts[int(shown.id)] += 1
    assert min(counts) > 5
    assert max(counts) < 40
    again = sample.sample(sample.Question(tmp_path / "one", 10, 3))[1]
    assert again == sample.sample(sample.Question(tmp_path / "one", 10, 3))[1]


def test_hostile_text_stays_text(own: Made, tmp_path: Path) -> None:
    text = page(tmp_path, "base", "--n", 50)
    read = _Reader(text)
    assert read.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h3",
        "p",
        "main",
        "article",
        "bdi",
        "pre",
        "dl",
        "dt",
        "dd",
        "mark",
    }
    assert not {name for name in read.attributes if name.startswith("on") or name in ("src", "href")}
    shown = HOSTILE.replace("\u202e", "[U+202E]").replace("\x1b", "[U+001B]")
    assert shown in read.text
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "@import" not in text
    assert '<mark title="rules__pii__secret 1">SECRET</mark>' in text
    assert len(ids(text)) == 42


def test_groups_conditions_and_what_was_taken_out(own: Made, tmp_path: Path) -> None:
    assert ids(page(tmp_path, "mixed", "--of", "dropped")) == ["w7"]
    text = page(tmp_path, "mixed", "--of", "dropped", "--by", "reason")
    assert "<h2>mix: rules__length__characters &lt; 10 (1)</h2>" in text
    assert "<pre>short</pre>" in text
    assert ids(page(tmp_path, "base", "--of", "duplicates")) == ["w9"]
    assert "&quot;w99&quot;" in page(tmp_path, "base", "--of", "quarantine")
    text = page(tmp_path, "base", "--n", 3, "--by", "source")
    assert list(re.findall(r"<h2>(\w+) \(3\)", text)) == ["books", "web"]
    text = page(tmp_path, "base", "--by", "length__characters", "--edges", "10,60", "--n", 2)
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "length__characters from ... to 10 (1)", "length__characters from 10 to 60 (2)", "length__characters from 60 to ... (2)",
    ]  # fmt: skip
    assert ids(page(tmp_path, "base", "--where", "pii__secret >= 1")) == ["b4"]


def test_overlapping_spans_name_all_and_long_texts_are_cut() -> None:
    shown = Shown("i", "s", "p", "abcdef", True, {}, {"x": [[1, 4, 1.0], [3, 9, 0.5]], "y": [[2, 3, 2.0], [9, 12, 1]]})
    text = page_html("t", "", {"": [shown]})
    assert (
        '<pre>a<mark title="x 1">b</mark><mark title="x 1; y 2">c</mark><mark title="x 1; x 0.5">d</mark>'
        '<mark title="x 0.5">ef</mark></pre><p class="soft">the text goes on</p>'
    ) in text


def test_questions_that_make_no_sense_are_refused(own: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        return refusal(sample.main, ["base", "--out", str(tmp_path / "x.html"), *words], capsys)

    assert refused("--n", "0") == "--n=0 must be positive"
    assert refused("--attributes", "x") == "--attributes: base has no x; it has exact, rules"
    assert refused("--by", "reason") == "--by reason goes with --of dropped, quarantine or duplicates"
    assert refused("--by", "x") == "--by x needs --edges, the scores at which groups begin"
    assert refused("--edges", "a") == "--edges=a must be numbers with commas between, e.g. 0.2,0.5"
    assert refused("--of", "dropped", "--where", "x > 1").startswith(
        "--where and --by ATTRIBUTE go with documents, not with --of"
    )
    assert refused("--of", "dropped") == "base: no dropped to draw from"
    assert refused("--where", "x > 1") == "base: no documents to draw from that pass --where"
