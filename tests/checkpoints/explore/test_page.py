"""The page in headless Chromium: a text led back to documents, hostile documents shown as the text they are, keys, links, sizes."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from checkpoints.explore.session import Session
from tests.browser import CHROMIUM
from tests.checkpoints.explore.conftest import CONTROLS, IMAGE, MARKS, NEEDLE, SCRIPT
from tests.checkpoints.explore.test_server import first_words
from tests.checkpoints.trace.influences import seen_text
from tests.texts import TextCorpus

PATIENCE_MS = 60_000
"""Other tests may have the cores."""
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM.exists(), f"{CHROMIUM} is missing, the explorer cannot be tested: run `bash tests/install_chromium.sh`"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@dataclass
class Tab:
    """A tab of its own, and what went wrong in it."""

    browser: Browser
    address: str
    problems: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)

    def open(self, hash_: str = "", width: int = 1280, height: int = 900, scheme: str = "light", touch: bool = False) -> Page:
        context = self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch, reduced_motion="reduce"
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on(
            "request", lambda request: self.elsewhere.append(request.url) if not request.url.startswith(self.address) else None
        )
        page.goto(self.address + hash_)
        page.wait_for_selector("#loading", state="hidden")
        self.pages.append(page)
        return page


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Tab]:
    """Fails if the console says anything (violations of the policy too), or if anybody else is asked."""
    opened = Tab(browser, address)
    yield opened
    for page in opened.pages:
        assert page.evaluate("window.hacked === undefined")
        page.context.close()
    assert opened.problems == []
    assert opened.elsewhere == []


def trace(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.click("#do-trace")
    expect(page.locator("#status")).to_contain_text("ms.")


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


# ---- from a text to the moment of learning ---------------------------------------------------------------------------------


def test_a_text_leads_to_documents_steps_and_probability(tab: Tab, session: Session) -> None:
    page, text = tab.open(), seen_text(session.need_trace(), 2, 20).strip()
    trace(page, f"Nobody wrote this: {text}")
    assert page.locator("#marked").inner_text() == f"Nobody wrote this: {text}"
    row = page.locator("#spans tbody tr").last
    row.click()
    expect(page.locator("#marked mark.chosen").first).to_be_visible()
    card = page.locator("#documents .card").first
    expect(card.locator("mark.match").first).to_be_visible()
    expect(card.locator(".sight, .soft").first).to_be_visible()
    assert re.search(r"step \d+ learned → checkpoint \d+", page.locator("#documents").inner_text())
    learned = page.locator(".snippet:has(.sight.learned)").first
    words = learned.locator("mark.match").inner_text()
    learned.get_by_role("button", name="Open the document here").click()
    expect(page.locator("#window mark.match")).to_have_text(words, use_inner_text=True)
    page.keyboard.press("Escape")
    expect(page.locator("#documents .card").first).to_be_visible()
    page.locator(".snippet:has(.sight.learned)").first.get_by_role("button", name="Probability of this occurrence").click()
    chart = page.locator("#probability .plot").first
    expect(chart.locator("circle.dot")).to_have_count(6)
    assert chart.locator("line.mark.sight").count() >= 1
    chart.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_contain_text("step 0")
    expect(page.locator("#tip")).to_contain_text("probability per token")
    page.get_by_text("As a table").click()
    expect(page.locator("#probability table").first.locator("tbody tr")).to_have_count(6)


def test_a_text_is_written_and_traced(tab: Tab) -> None:
    page = tab.open()
    page.fill("#text", "the old")
    page.locator("summary", has_text="Settings").click()
    page.fill("#max-tokens", "12")
    page.select_option("#step", "5")
    page.click("#do-generate")
    expect(page.locator("#status")).to_contain_text("ms.")
    expect(page.locator("#marked-title")).to_have_text("Written by step 5")
    expect(page.locator("#marked .prompt")).to_have_text("the old")
    written = page.locator("#marked").inner_text()
    assert len(written) > len("the old")
    other = tab.open(page.url.split("/")[-1])
    expect(other.locator("#marked-title")).to_have_text("Written by step 5")
    assert other.locator("#marked").inner_text() == written
    assert other.input_value("#text") == "the old"


def test_what_cannot_be_is_said(tab: Tab) -> None:
    page = tab.open()
    page.click("#do-trace")
    expect(page.locator("#status")).to_have_text("Write or paste a text first.")
    trace(page, "Qzx 9#!")
    expect(page.locator("#summary")).to_contain_text("No span of")
    expect(page.locator("#documents")).to_contain_text("Nothing of this text stands in the training data.")
    tab.open("#view=nonsense&span=x&doc=y&step=-1&page=%00&tab=z&at=1-2&text=the+old+cat")
    failing = tab.open()
    failing.fill("#text", "the old cat sees " * 30)
    failing.click("#do-generate")
    expect(failing.locator("#problem")).to_contain_text("the model sees 16 at a time")
    for problem in tab.problems:  # the browser's own word for an answer that is refused
        assert problem.startswith("Failed to load resource: the server responded with a status of 422")
    tab.problems.clear()


def test_a_text_beyond_a_limit_is_said_and_never_sent(tab: Tab) -> None:
    page = tab.open()
    page.evaluate("document.getElementById('text').value = 'the old cat '.repeat(2000)")
    for button in ("#do-trace", "#do-generate"):
        page.click(button)
        expect(page.locator("#problem")).to_contain_text("The text has 24,000 characters, limits.text=20,000 are taken")
    trace(page, "<> " * 6000)
    expect(page.locator("#status")).to_contain_text("The text is too long for the address")
    assert "text=" not in page.url


# ---- hostile documents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SCRIPT, IMAGE, CONTROLS, MARKS], ids=["script", "image", "controls", "marks"])
def test_hostile_documents_do_nothing_and_are_shown(tab: Tab, text: str) -> None:
    page = tab.open()
    page.evaluate("text => { location.hash = new URLSearchParams({ text }) }", text)
    page.reload()
    expect(page.locator("#status")).to_contain_text("ms.")
    expect(page.locator("#documents .card").first).to_be_visible()
    for selector in ("#marked", "#documents"):
        assert page.locator(f"{selector} script, {selector} img, {selector} b script, {selector} [onerror]").count() == 0
    assert page.locator('a[href^="javascript" i]').count() == 0
    for details in page.locator("#documents details").all():
        details.locator("summary").first.click()
    page.get_by_role("button", name="Open the document here").first.click()
    expect(page.locator("#window")).to_be_visible()
    assert overflow(page) <= 0
    hidden = re.findall(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\U000e0041]",
        page.locator("main").inner_text(),
    )
    assert hidden == []


def test_hidden_characters_are_pictures_of_themselves(tab: Tab) -> None:
    page = tab.open()
    page.evaluate("text => { location.hash = new URLSearchParams({ text }) }", CONTROLS)
    page.reload()
    expect(page.locator("#status")).to_contain_text("ms.")
    shown = page.locator("#marked").inner_text()
    for picture in ("NULBELESC[31m", "RLO", "PDF", "ZWSP", "LRI", "PDI", "U+009B", "U+E0041", "BOM"):
        assert picture in shown
    page.locator("#spans tbody tr").first.click()
    expect(page.locator("#documents .id").filter(has_text="controls [RLO][BEL] id").first).to_be_visible()


def test_addresses_are_links_only_if_they_lead_to_the_web(tab: Tab) -> None:
    page = tab.open()
    trace(page, "a small bird follows the honest fish")
    page.locator("#spans tbody tr").first.click()
    anchor = page.locator('#documents a[href^="https://example.org"]').first
    expect(anchor).to_have_attribute("rel", "noopener noreferrer")
    expect(anchor).to_have_attribute("target", "_blank")
    made = """async () => { const { link } = await import("/dom.js"); return ["javascript:alert(1)", " javascript:alert(1)", "data:text/html,x",
        "//evil", "file:///etc", "http://a:b@c/", "java\\nscript:alert(1)", "HTTPS://a.b/"].map((text) => link(text).tagName) }"""
    assert page.evaluate(made) == ["BDI"] * 7 + ["A"]


def test_a_line_of_10_mb_is_paged_through(tab: Tab) -> None:
    page = tab.open(width=360, height=740)
    trace(page, NEEDLE)
    page.locator("#spans tbody tr").first.click()
    card = page.locator("#documents .card").filter(has_text=NEEDLE[:20]).first
    card.get_by_role("button", name="Open the document here").first.click()
    window = page.locator("#window")
    expect(window.locator("mark.match")).to_have_text(re.compile("hears the small tree"))
    assert "</script>" in window.inner_text()
    assert overflow(page) <= 0
    page.get_by_role("button", name="⇤ Start").first.click()
    expect(page.locator(".pages").first).to_contain_text("tokens 1 to 500 of ")
    assert len(window.inner_text()) < 10_000
    page.keyboard.press("]")
    expect(page.locator(".pages").first).to_contain_text("tokens 501 to 1,000 of ")
    page.keyboard.press("[")
    expect(page.locator(".pages").first).to_contain_text("tokens 1 to 500 of ")
    again = tab.open(page.url.split("/")[-1], width=360)
    expect(again.locator(".pages").first).to_contain_text("tokens 1 to 500 of ")


# ---- keys, links, sizes, colours -------------------------------------------------------------------------------------------


def test_everything_is_reached_by_keys(tab: Tab, corpus: TextCorpus) -> None:
    page, text = tab.open(), first_words(corpus, 8)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type(f"{text} jkdp12[] {text}")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("ms.")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect(page.locator("#spans tr.chosen")).to_have_attribute("data-span", "0")
    assert page.evaluate("document.activeElement.closest('#marked mark') !== null")
    expect(page.locator("#spoken")).to_contain_text("Span 1 of")
    page.keyboard.press("k")
    last = page.locator("#spans tbody tr").count() - 1
    expect(page.locator("#spans tr.chosen")).to_have_attribute("data-span", str(last))
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('#documents') !== null")
    page.keyboard.press("p")
    expect(page.locator("#tab-probability")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("d")
    expect(page.locator("#tab-documents")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#spans tr.chosen")).to_have_count(0)
    page.keyboard.press("2")
    expect(page.locator("#view-run")).to_be_visible()
    page.keyboard.press("1")
    expect(page.locator("#view-trace")).to_be_visible()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.focus("#marked mark >> nth=0")
    page.keyboard.press("Enter")
    expect(page.locator("#marked mark").first).to_have_attribute("aria-pressed", "true")
    assert page.locator("#marked mark").first.evaluate("e => getComputedStyle(e).outlineStyle") != "none"


def test_links_and_the_back_button_bring_a_view_again(tab: Tab, corpus: TextCorpus) -> None:
    page, text = tab.open(), first_words(corpus, 8)
    trace(page, text)
    page.keyboard.press("Escape")
    page.locator("#spans tbody tr").first.click()
    page.get_by_role("button", name="Open the document here").first.click()
    expect(page.locator("#window")).to_be_visible()
    link, words = page.url, page.locator("#window").inner_text()
    other = tab.open(link.split("/")[-1])
    expect(other.locator("#window")).to_be_visible()
    assert other.locator("#window").inner_text() == words
    assert other.input_value("#text") == text
    expect(other.locator("#spans tr.chosen")).to_have_attribute("data-span", "0")
    page.go_back()
    expect(page.locator("#window")).to_have_count(0)
    expect(page.locator("#documents .card").first).to_be_visible()
    page.go_forward()
    expect(page.locator("#window")).to_be_visible()
    page.click("#nav-run")
    page.locator("#checkpoints tr[data-step='5'] button").click()
    other.goto(page.url)
    other.reload()
    expect(other.locator("#checkpoint h2")).to_have_text("Checkpoint of step 5")


@pytest.mark.parametrize("values", ["from=abc", "from=NaN&step=x", "span=-1&step=1e9", "span=99&tab=__proto__&view=constructor"])
def test_an_address_that_says_nonsense_shows_the_text(tab: Tab, corpus: TextCorpus, values: str) -> None:
    page = tab.open("#" + urlencode({"text": first_words(corpus)}) + "&" + values)
    expect(page.locator("#status")).to_contain_text("ms.")
    expect(page.locator("#marked-title")).to_have_text("Text")
    assert "NaN" not in page.locator("body").inner_text()


def test_spans_that_lie_over_each_other_are_each_reached(tab: Tab) -> None:
    """Spans by hand: `drawText` gets an answer that no corpus has to be made for."""
    page = tab.open()
    answer = {"text": "\U0001f600abcdef", "n_trained_tokens": 1000, "spans": []}
    for number, (start, end, log_prob) in enumerate([(0, 4, -20.0), (2, 6, -90.0), (3, 5, -200.0)]):
        entry = {"number": number, "char_start": start, "char_end": end, "log_prob": log_prob, "count": 1, "text": "t"}
        answer["spans"].append(entry | {"start": start, "end": end, "heldout_count": 0, "documents": []})
    marks = page.evaluate(
        """async (answer) => { const { drawText } = await import("/spans.js"); drawText(answer, "", () => {});
        return [...document.querySelectorAll("#marked mark")].map((m) => [m.textContent, m.dataset.spans, m.className]) }""", answer
    )  # fmt: skip
    assert marks == [
        ["\U0001f600a", "0", "level1"], ["b", "1 0", "level4"], ["c", "2 1 0", "level4"], ["d", "2 1", "level4"], ["e", "1", "level4"],
    ]  # fmt: skip


@pytest.mark.parametrize("width", [360, 414, 768])
def test_no_width_scrolls_sideways(tab: Tab, corpus: TextCorpus, width: int) -> None:
    page = tab.open(width=width, height=740, touch=True)
    trace(page, f"{first_words(corpus)} {'unbroken' * 60}")
    assert overflow(page) <= 0
    assert page.evaluate("document.getElementById('marked').scrollWidth <= document.getElementById('marked').clientWidth")
    page.locator("#marked mark").first.tap()
    expect(page.locator("#documents .card").first).to_be_in_viewport()
    page.get_by_role("button", name="Open the document here").first.click()
    expect(page.locator("#window")).to_be_visible()
    assert overflow(page) <= 0
    page.click("#tab-probability")
    expect(page.locator("#probability .plot").first).to_be_visible(timeout=PATIENCE_MS)
    assert overflow(page) <= 0
    page.click("#nav-run")
    expect(page.locator("#view-run .plot svg").first).to_be_visible()
    assert overflow(page) <= 0


CONTRAST = """() => { const parse = (c) => c.match(/[\\d.]+/g).map(Number), light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const found = []; for (const e of document.querySelectorAll("main *, header *")) {
    if (!e.checkVisibility() || !["", null].includes(e.getAttribute("disabled") ?? "") || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5 && !e.closest("svg, button:disabled")) found.push([e.tagName, e.className, e.textContent.slice(0, 30), (a + 0.05) / (b + 0.05)]);
  } return found; }"""
"""Texts with less contrast than WCAG 2.2, level AA, asks for."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_legible_in_light_and_dark(tab: Tab, corpus: TextCorpus, scheme: str) -> None:
    page = tab.open(scheme=scheme)
    trace(page, first_words(corpus))
    page.locator("#spans tbody tr").first.click()
    expect(page.locator("#documents .card").first).to_be_visible()
    assert page.evaluate(CONTRAST) == []
    page.click("#nav-run")
    expect(page.locator("#view-run .plot svg").first).to_be_visible()
    assert page.evaluate(CONTRAST) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == (scheme == "light")


def test_the_timeline_chooses_checkpoints(tab: Tab, run: Path) -> None:
    page = tab.open("#view=run")
    expect(page.locator("#checkpoint h2")).to_have_text("Checkpoint of step 10")
    chart = page.locator("#view-run .plot").first
    expect(chart.locator("circle.stop")).to_have_count(6)
    chart.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_contain_text("step 1")
    page.keyboard.press("Enter")
    expect(page.locator("#checkpoint h2")).to_have_text("Checkpoint of step 1")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    line = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    expect(page.locator("#checkpoint")).to_contain_text(f"{line['loss']:.4g}")
    expect(page.locator("#checkpoint")).to_contain_text("bits_per_byte")
    heat = page.locator("#view-run .heat-plot").first
    heat.hover()
    expect(page.locator("#tip")).to_contain_text("busiest expert")
    page.get_by_role("button", name="Write with it").click()
    expect(page.locator("#view-trace")).to_be_visible()
    assert page.input_value("#step") == "10"


def test_the_page_says_what_the_server_cannot(tab: Tab, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "trace", None)
    monkeypatch.setattr(session, "trace_problem", "no index; build it: olmo trace index shards=x")
    page = tab.open()
    expect(page.locator("#problem")).to_contain_text("build it: olmo trace index shards=x")
    expect(page.locator("#do-trace")).to_be_disabled()
    expect(page.locator("#do-generate")).to_be_enabled()
    page.click("#nav-run")
    expect(page.locator("#checkpoint h2")).to_be_visible()
