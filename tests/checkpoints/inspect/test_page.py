"""The HTML report in a real browser: whole, offline, narrow, by mouse, finger and keyboard."""

import json
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from checkpoints.inspect.heat_map import ratio_class, share_class
from checkpoints.inspect.page import page_html
from checkpoints.inspect.page_texts import token_class
from tests.browser import Page
from tests.checkpoints.inspect.curves import make_curves, read_curves
from tests.checkpoints.inspect.reports import is_clean, tip, write_page

SECTIONS = [
    "loss", "checkpoints", "evaluations", "weights", "experts", "saturation", "coactivation", "sources", "tokens", "texts", "method",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def report(run: Path) -> Path:
    return make_curves(run) / "report.html"


@pytest.mark.parametrize(
    "width, scheme, touch", [(360, "light", True), (360, "dark", True), (768, "light", False), (1280, "dark", False)]
)
def test_the_page_is_whole_and_never_wider_than_the_screen(
    browser: Page, report: Path, width: int, scheme: str, touch: bool
) -> None:
    browser.open(report, width, 800, scheme, touch)
    is_clean(browser, report)
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    sticking_out = "[...document.querySelectorAll('body *')].filter((e) => !e.closest('.scroll, svg, .spoken, .tokens') && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))"
    assert browser.run(sticking_out) == []
    assert browser.run("[...document.querySelectorAll('main > section')].map((e) => e.id)") == SECTIONS
    assert browser.run("[...document.querySelectorAll('nav a')].every((a) => document.querySelector(a.hash))")


def test_every_figure_has_data_a_heading_a_caption_and_a_source(browser: Page, report: Path) -> None:
    browser.open(report, 1000)
    figures = browser.run(
        "[...document.querySelectorAll('figure')].map((f) => ({title: f.querySelector('h3').textContent, says: f.querySelector('figcaption').textContent,"
        "marks: f.querySelectorAll('.line, rect, .tokens span, .token').length, boxes: f.querySelectorAll('.chart, .heat, .tokens, .experts').length}))"
    )
    assert len(figures) >= 14
    assert len({figure["title"] for figure in figures}) == len(figures)
    for figure in figures:
        assert min(figure["marks"], figure["boxes"]) > 0, figure
        assert re.search(r".{60}Source: ", figure["says"]), figure
    assert sum("OLMoE (arXiv 2409.02060), section 5." in figure["says"] for figure in figures) >= 8
    drawn = browser.run(
        "[...document.querySelectorAll('svg')].every((s) => s.getBoundingClientRect().width > 8 && s.getBoundingClientRect().height >= 8)"
    )
    assert drawn


def test_the_loss_curve_has_a_point_for_every_step(browser: Page, report: Path, run: Path) -> None:
    browser.open(report, 1000)
    chart = browser.run("JSON.parse(document.querySelector('#loss .chart').dataset.chart)")
    training = read_curves(run)["training"]
    assert chart["lines"][0]["x"] == training["step"]
    assert chart["lines"][0]["y"] == [float(f"{loss:.6g}") for loss in training["loss"]]
    assert [line["name"] for line in chart["lines"]] == ["training", "held out: animals", "held out: places", "held out: all"]
    assert browser.run("document.querySelector('#loss .chart .dots').getAttribute('d').match(/h0/g).length") == 10


def test_a_chart_tells_its_values_to_the_mouse(browser: Page, report: Path, run: Path) -> None:
    browser.open(report, 1000)
    browser.hover("#saturation .plot", 0.995)
    layers = [
        [layer["saturation"]["top_k"] for layer in c["routing"]["layers"]] for c in read_curves(run)["series"]["checkpoints"]
    ]
    assert tip(browser) == "step 10|layer 0=1|layer 1=1"
    browser.hover("#saturation .plot", 0.005)
    shown = [float(value) for value in re.findall(r"layer \d=([\d.]+)", tip(browser))]
    assert tip(browser).startswith("step 0|")
    assert shown == pytest.approx(layers[0], rel=1e-3)
    box = browser.run(
        "(({left, right, top, bottom}) => [left, top, innerWidth - right, innerHeight - bottom])(tip.getBoundingClientRect())"
    )
    assert min(box) >= 0, "the tooltip is on the screen"
    browser.hover("h1")
    assert tip(browser) == ""


def test_a_chart_tells_its_values_to_a_finger(browser: Page, report: Path) -> None:
    browser.open(report, 360, touch=True)
    browser.tap("#saturation .plot", 0.98)
    assert tip(browser) == "step 10|layer 0=1|layer 1=1"
    browser.tap("#saturation figcaption")
    assert tip(browser) == ""


def test_a_chart_is_read_by_keyboard_and_spoken(browser: Page, report: Path) -> None:
    browser.open(report, 1000)
    browser.focus("#saturation .chart")
    browser.press("End")
    assert tip(browser) == "step 10|layer 0=1|layer 1=1"
    assert browser.run("spoken.textContent") == "step 10: layer 0 1; layer 1 1"
    browser.press("ArrowLeft")
    assert tip(browser).startswith("step 5|")
    browser.press("Home")
    assert tip(browser).startswith("step 0|")
    browser.press("Escape")
    assert tip(browser) == ""
    label = browser.run("document.querySelector('#saturation .chart').getAttribute('aria-label')")
    assert label.startswith("All 2 chosen experts, fraction, 0 to 1. layer 0: ")
    assert "1.000 at 10" in label


def test_a_layer_is_picked_and_its_cells_are_read(browser: Page, report: Path, run: Path) -> None:
    browser.open(report, 1000)
    matrices = [layer["co_activation"]["matrix"] for layer in read_curves(run)["series"]["checkpoints"][-1]["routing"]["layers"]]
    largest = max(value for matrix in matrices for row in matrix for value in row)
    classes = "[...document.querySelectorAll('#coactivation rect')].map((r) => r.getAttribute('class'))"
    for layer, matrix in enumerate(matrices):
        browser.run(
            f"(() => {{ const s = document.querySelector('#coactivation select'); s.value = {layer}; s.dispatchEvent(new Event('input')); }})()"
        )
        wanted = [
            "own" if i == j else f"q{share_class(value, largest)}" for i, row in enumerate(matrix) for j, value in enumerate(row)
        ]
        assert browser.run(classes) == wanted
        browser.hover("#coactivation .heat .plot", 0.9, 0.1)
        shown = re.fullmatch(r"expert 0, other expert 3\|of its tokens also go to the other=([\d.]+)", tip(browser))
        assert shown
        assert float(shown[1]) == pytest.approx(matrix[0][3], rel=1e-3)
    browser.focus("#coactivation .heat")
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    assert tip(browser) == "expert 1, other expert 3|of its tokens also go to the other=" + tip(browser).rpartition("=")[2]


def test_pickers_of_checkpoint_and_layer_draw_what_the_data_says(browser: Page, report: Path, run: Path) -> None:
    browser.open(report, 1000)
    first = read_curves(run)["series"]["checkpoints"][0]["routing"]
    browser.run(
        "for (const [i, v] of [[0, 0], [1, 1]]) { const s = document.querySelectorAll('#sources select')[i]; s.value = v; s.dispatchEvent(new Event('input')); }"
    )
    shares = [share for domain in first["layers"][1]["domains"].values() for share in domain["share"]]
    classes = browser.run("[...document.querySelectorAll('#sources rect')].map((r) => r.getAttribute('class'))")
    assert classes == [f"d{ratio_class(share * first['n_experts'] / first['top_k'])}" for share in shares]


def test_without_its_script_the_page_shows_the_same(browser: Page, report: Path) -> None:
    classes = re.findall(r'<rect class="(\w+)"', report.read_text())
    tokens = re.findall(r'<span class="(t\d)">', report.read_text())
    browser.open(report, 1000)
    assert classes
    assert browser.run("[...document.querySelectorAll('.heat rect')].map((r) => r.getAttribute('class'))") == classes
    assert tokens
    assert browser.run("[...document.querySelectorAll('.tokens span')].map((s) => s.className)") == tokens
    assert '<div class="pickers" hidden>' in report.read_text()
    assert "<noscript>" in report.read_text()


def test_the_tokens_of_a_text_take_the_colours_of_a_checkpoint(browser: Page, report: Path, run: Path) -> None:
    browser.open(report, 1000)
    first = read_curves(run)["series"]["checkpoints"][0]["texts"][0]
    browser.run(
        "(() => { const s = document.querySelector('#texts input'); s.value = 0; s.dispatchEvent(new Event('input')); })()"
    )
    classes = browser.run("[...document.querySelector('.tokens').querySelectorAll('span')].map((s) => s.className)")
    assert classes == [f"t{token_class(log_prob)}" for log_prob in first["log_probs"]]
    assert browser.run("document.querySelector('#texts output').textContent").startswith("step 0: ")
    browser.hover(".tokens span:nth-child(2)")
    assert re.search(rf"\|nats=[\d.]+\|rank={first['ranks'][1]}$", tip(browser))
    browser.focus(".tokens")
    browser.press("End")
    assert tip(browser).startswith(f"{first['tokens'][-1].replace(' ', chr(183))}|probability=")


def test_the_data_can_be_downloaded(browser: Page, report: Path, run: Path, tmp_path: Path) -> None:
    browser.open(report, 1000)
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.run("document.getElementById('download').click()")
    saved, deadline = tmp_path / "curves.json", time.monotonic() + 20
    while not saved.exists() and time.monotonic() < deadline:
        browser.run("new Promise((done) => setTimeout(done, 50))")
    document, carried = read_curves(run), json.loads(saved.read_text())
    assert carried["format"] == document["format"]
    assert carried["definitions"] == document["definitions"]
    wanted = document["series"]["checkpoints"][3]["norms"]["all"]["norm"]
    assert carried["series"]["checkpoints"][3]["norms"]["all"]["norm"] == float(f"{wanted:.5g}")
    is_clean(browser, report)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(browser: Page, report: Path, scheme: str) -> None:
    browser.open(report, 1000, scheme=scheme)
    weak = browser.run("""(() => {
      const channels = (c) => c.match(/[\\d.]+/g).map(Number);
      const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = (e) => { for (; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor); if (c[3] !== 0) return c; } };
      const found = [];
      for (const e of document.querySelectorAll('body *')) {
        if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || e.closest('script, noscript, [hidden], svg')) continue;
        if (!e.checkVisibility()) continue;
        const [a, b] = [light(channels(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) found.push([e.className, e.textContent.slice(0, 30), (a + 0.05) / (b + 0.05)]);
      }
      return found;
    })()""")
    assert weak == []
    lines = browser.run("""(() => {
      const light = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = light(getComputedStyle(document.body).backgroundColor);
      return [...document.querySelectorAll('.plot .line')].map((e) => light(getComputedStyle(e).stroke))
        .map((l) => (Math.max(l, ground) + 0.05) / (Math.min(l, ground) + 0.05));
    })()""")
    assert lines
    assert min(lines) >= 3.0


def test_headings_and_labels_are_in_order(browser: Page, report: Path) -> None:
    browser.open(report, 1000)
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3, h4')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert browser.run(
        "[...document.querySelectorAll('[tabindex]')].every((e) => e.getAttribute('aria-label') && e.getAttribute('role'))"
    )
    assert browser.run(
        "[...document.querySelectorAll('section')].every((e) => document.getElementById(e.getAttribute('aria-labelledby')))"
    )
    assert browser.run("document.documentElement.lang") == "en"
    assert browser.run("document.title") == "first: training run"
    assert browser.run("[...document.querySelectorAll('select, input')].every((e) => e.labels.length === 1)")


def test_on_paper_nothing_is_left_that_only_a_screen_can_do(browser: Page, report: Path) -> None:
    browser.open(report, 760, scheme="dark")
    browser.send("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    hidden = "['nav', '#download', '.pickers'].every((name) => getComputedStyle(document.querySelector(name)).display === 'none')"
    assert browser.run(hidden)
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"
    browser.send("Emulation.setEmulatedMedia", media="screen")


def test_what_was_not_measured_is_a_sentence(browser: Page, run: Path, tmp_path: Path) -> None:
    document = read_curves(run)
    for checkpoint in document["series"]["checkpoints"]:
        checkpoint.update(routing=None, norms=None, heldout=None, texts=None)
    document |= {
        "training": None,
        "evaluations": [],
        "asked": ["loss", "heldout", "text"],
        "left_out": {"routing": "It is dense.", "loss": "There is none."},
    }
    path = write_page(tmp_path, document)
    browser.open(path, 360)
    is_clean(browser, path)
    said = browser.run(
        "Object.fromEntries([...document.querySelectorAll('main > section')].map((s) => [s.id, [...s.querySelectorAll('.left-out')].map((e) => e.textContent)]))"
    )
    assert said["experts"] == ["It is dense."]
    assert said["loss"][0] == "There is none."
    assert said["weights"] == ["Not measured: --measures did not ask for norms."]
    assert said["evaluations"] == ["Not measured: --measures did not ask for evaluations."]
    assert browser.run("document.querySelectorAll('figure').length") == 0


def test_checkpoints_without_steps_are_numbered(browser: Page, run: Path, tmp_path: Path) -> None:
    document = read_curves(run)
    for number, checkpoint in enumerate(document["series"]["checkpoints"]):
        checkpoint.update(step=None, tokens=None, train_loss=None, where=f"exports/{number}")
    path = write_page(tmp_path, document)
    browser.open(path, 800)
    is_clean(browser, path)
    browser.hover("#saturation .plot", 0.995)
    assert tip(browser).startswith("checkpoint 5|")
    assert browser.run("document.querySelector('#checkpoints tbody th').textContent") == "exports/0"


def test_a_report_on_a_model_as_large_as_olmoe_stays_small(browser: Page, run: Path, tmp_path: Path) -> None:
    document = read_curves(run)
    n_experts, n_layers, n_checkpoints = 64, 16, 244
    checkpoints = document["series"]["checkpoints"]
    for checkpoint in checkpoints:
        routing = checkpoint["routing"] | {"n_experts": n_experts, "top_k": 8}
        routing["layers"] = [grown(routing["layers"][i % 2], n_experts) | {"layer": i} for i in range(n_layers)]
        checkpoint["routing"] = routing
    series = [{**checkpoints[min(i, 4)], "step": 5000 * i} for i in range(n_checkpoints - 1)]
    document["series"]["checkpoints"] = [*series, checkpoints[-1] | {"step": 5000 * n_checkpoints}]
    document["sizes"] = [1] * n_checkpoints
    path = tmp_path / "page.html"
    path.write_text(page_html(document))
    assert path.stat().st_size < 5_000_000, path.stat().st_size
    browser.open(path, 360, touch=True)
    is_clean(browser, path)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert browser.run("document.querySelectorAll('#coactivation rect').length") == n_experts**2


def grown(layer: dict[str, Any], n: int) -> dict[str, Any]:
    """A layer of 4 experts as one of `n`."""

    def wide(values: list[Any]) -> list[Any]:
        return (values * n)[:n]

    matrix = layer["co_activation"]["matrix"]
    tall = wide([wide(row) for row in matrix]) if matrix else None
    roles = ("input", "predicted", "target")
    vocabulary = layer["vocabulary"] | {
        role: layer["vocabulary"][role] | {key: wide(layer["vocabulary"][role][key]) for key in ("by_expert", "tokens")}
        for role in roles
    }
    return layer | {
        "balance": layer["balance"] | {"load": wide(layer["balance"]["load"])},
        "co_activation": layer["co_activation"] | {"matrix": tall},
        "domains": {f"{name} {i}": d | {key: wide(d[key]) for key in ("share", "share_top_1")} for i in range(4) for name, d in layer["domains"].items()},
        "vocabulary": vocabulary,
    }  # fmt: skip


def test_colours_follow_the_numbers() -> None:
    assert [ratio_class(value) for value in (0, 0.1, 0.25, 0.5, 1, 2, 4, 100)] == [0, 0, 0, 2, 4, 6, 8, 8]
    assert [share_class(value, 0.5) for value in (0, 0.25, 0.5, 0.9)] == [0, 4, 8, 8]
    assert share_class(0.0, 0.0) == 0
    assert [token_class(value) for value in (0.0, -1.0, -3.0, -6.0, -30.0, None)] == [0, 1, 2, 3, 4, 4]
