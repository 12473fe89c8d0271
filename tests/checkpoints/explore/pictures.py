"""The pictures of docs/explore.md: `python -m tests.checkpoints.explore.pictures RUN TEXT_FILE HOSTILE_TEXT_FILE docs`."""

import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, sync_playwright

from checkpoints.explore.command import listen, server_of
from checkpoints.explore.config import ExploreConfig, find_problems
from checkpoints.explore.server import build_app
from checkpoints.explore.session import Session
from olmo_train.schema import load_config
from tests.browser import CHROMIUM

PATIENCE_MS = 240_000


def main(argv: list[str]) -> None:
    """Serve the run, open it as the pictures have it, and write docs/explore_*.png."""
    run, text, hostile, output = Path(argv[0]), Path(argv[1]).read_text(), Path(argv[2]).read_text(), Path(argv[3])
    session = Session(run, load_config("explore", ExploreConfig, [f"run={run}", *argv[4:]], find_problems))
    session.warm()
    with listen("127.0.0.1", 0) as listener, sync_playwright() as playwright:
        server = server_of(build_app(session), session)
        threading.Thread(target=server.run, args=([listener],), daemon=True).start()
        while not server.started:
            time.sleep(0.01)
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        draw(browser, f"http://127.0.0.1:{listener.getsockname()[1]}/", (text, hostile), output)
        browser.close()
        server.should_exit = True


def draw(browser: Browser, address: str, texts: tuple[str, str], output: Path) -> None:
    """One picture per view."""
    text, hostile = texts
    page = open_page(browser, address, {"text": text, "span": "4"}, (1280, 860))
    page.screenshot(path=output / "explore_light.png")
    page = open_page(browser, address, {"text": text, "span": "0"}, (1280, 860), "dark")
    page.get_by_role("button", name="Open the document here").first.click()
    page.wait_for_selector("#window")
    page.screenshot(path=output / "explore_dark.png")
    page = open_page(browser, address, {"text": text, "span": "2", "tab": "probability"}, (1280, 1000))
    page.wait_for_selector("#probability .plot circle.dot", timeout=PATIENCE_MS)
    page.screenshot(path=output / "explore_curve.png")
    page = open_page(browser, address, {"view": "run"}, (1280, 1000))
    page.wait_for_selector("#view-run .plot svg")
    page.screenshot(path=output / "explore_run.png")
    page = open_page(browser, address, {"text": text, "span": "0"}, (360, 780))
    page.locator("#panel").scroll_into_view_if_needed()
    page.screenshot(path=output / "explore_phone.png")
    page = open_page(browser, address, {"text": hostile, "span": "0"}, (1280, 640))
    page.screenshot(path=output / "explore_hostile.png")


def open_page(browser: Browser, address: str, state: dict[str, str], size: tuple[int, int], scheme: str = "light") -> Page:
    """A page whose address says `state`, when it is drawn."""
    dark = scheme == "dark"
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    page.goto(f"{address}#{urlencode(state)}")
    page.wait_for_selector("#loading", state="hidden")
    if "text" in state:
        page.wait_for_selector("#spans tbody tr", timeout=PATIENCE_MS)
        page.wait_for_selector("#documents .card, #probability h2")
    return page


if __name__ == "__main__":
    main(sys.argv[1:])
