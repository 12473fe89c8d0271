"""Pages of reports for tests, and what a browser says of them."""

from pathlib import Path
from typing import Any

from checkpoints.inspect.curves_file import finite
from checkpoints.inspect.page import page_html
from tests.browser import Page


def write_page(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "page.html"
    path.write_text(page_html(finite(document)), encoding="utf-8")
    return path


def tip(browser: Page) -> str:
    """What the tooltip says; '' if it is hidden."""
    return str(
        browser.run(
            "tip.hidden ? '' : [...tip.children].map((e) => [...e.childNodes].map((n) => n.textContent).filter(Boolean).join('=')).join('|')"
        )
    )


def is_clean(browser: Page, path: Path) -> None:
    """Nothing was logged or thrown, and nothing was asked for but the page itself."""
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith("blob:")] == [path.resolve().as_uri()]
