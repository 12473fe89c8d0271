"""No string of a run, whatever is in it, becomes part of the report; the page is one well-formed file that asks for nothing."""

import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from checkpoints.inspect.page_parts import script_json, table, tag, text
from tests.browser import Page
from tests.checkpoints.inspect.curves import TEXTS, make_curves, read_curves
from tests.checkpoints.inspect.reports import is_clean, tip, write_page

HOSTILE = '</script><img src=x onerror="window.owned=1">\'"&amp;\x00\x1b[31m\u202e\u2028<!--'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


def hostile_everywhere(value: Any) -> Any:
    """Every string of a document but those that are ours gets HOSTILE at its end."""
    if isinstance(value, dict):
        return {key: hostile_everywhere(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [hostile_everywhere(entry) for entry in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_no_string_of_a_run_becomes_part_of_the_page(browser: Page, run: Path, tmp_path: Path) -> None:
    document = read_curves(run)
    kept = {key: document[key] for key in ("asked", "format")}
    suites = [entry["suite"] for entry in document["evaluations"]]
    document = hostile_everywhere(document) | kept
    for entry, suite in zip(document["evaluations"], suites):
        entry["suite"] = suite
    for checkpoint in document["series"]["checkpoints"]:
        checkpoint["heldout"] = {f"{name}{HOSTILE}": loss for name, loss in checkpoint["heldout"].items()}
        checkpoint["norms"]["by_kind"] = {f"{kind}{HOSTILE}": norm for kind, norm in checkpoint["norms"]["by_kind"].items()}
        for layer in checkpoint["routing"]["layers"]:
            layer["domains"] = {f"{name}{HOSTILE}": domain for name, domain in layer["domains"].items()}
    path = write_page(tmp_path, document)
    browser.open(path, 360, touch=True)
    is_clean(browser, path)
    assert browser.run("window.owned") is None
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 2
    shown = 'first</script><img src=x onerror="window.owned=1">\'"&amp;\\x00\\x1b[31m\\u202e\\u2028<!--'
    assert browser.run("document.querySelector('h1').textContent") == shown
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", path.read_text(encoding="utf-8"))
    browser.tap("#loss .plot", 0.5)
    assert "window.owned=1" in tip(browser)
    browser.hover("#sources .heat .plot", 0.5)
    assert browser.run("JSON.parse(document.getElementById('data').textContent).run.name") == "first" + HOSTILE
    assert browser.run("window.owned") is None


def test_the_policy_stops_a_script_that_slipped_through(browser: Page, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    attack = "<script>window.owned = 1</script><img src='https://example.com/x.png' onerror='window.owned = 2'>"
    path.write_text((make_curves(run) / "report.html").read_text().replace("</main>", f"{attack}</main>"))
    browser.open(path, 800)
    assert browser.run("window.owned") is None
    assert len(browser.problems) >= 2
    assert all("Content Security Policy" in problem for problem in browser.problems)
    browser.problems.clear()


class Balanced(HTMLParser):
    """Whether every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.ids += [value for key, value in attributes if key == "id" and value]
        if name not in {"meta", "br", "input"}:
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert name in ("path", "rect"), name

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name


def test_the_page_is_one_well_formed_file(run: Path) -> None:
    parser, page = Balanced(), (make_curves(run) / "report.html").read_text()
    parser.feed(page)
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert not re.search(r"(src|href)=\"(?!#)|@import|url\(", page)
    assert all(html.escape(words.split()[0]) in page for words in TEXTS)


def test_a_string_is_never_markup() -> None:
    assert (
        text(HOSTILE)
        == "&lt;/script&gt;&lt;img src=x onerror=&quot;window.owned=1&quot;&gt;&#x27;&quot;&amp;amp;\\x00\\x1b[31m\\u202e\\u2028&lt;!--"
    )
    assert tag("p", "x", title='"><b>', data_x=None, hidden=True) == '<p title="&quot;&gt;&lt;b&gt;" hidden>x</p>'
    assert "</script" not in script_json({HOSTILE: HOSTILE})
    assert json.loads(script_json([HOSTILE])) == [HOSTILE]
    assert "<caption>&lt;b&gt;</caption>" in table(["a"], [["b"]], "<b>")
