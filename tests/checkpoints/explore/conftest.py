"""The finished run with its index, a second index of hostile documents, and a server of both."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from checkpoints.explore.command import listen, server_of
from checkpoints.explore.config import ExploreConfig, find_problems
from checkpoints.explore.guard import Guard
from checkpoints.explore.server import build_app
from checkpoints.explore.session import Session
from data_tools.tokenize import command as tokenize_corpus
from data_tools.trace.build_index import build, index_folder_of
from data_tools.trace.config import IndexConfig
from olmo_train.schema import load_config
from tests.runs import run_on_text
from tests.texts import TextCorpus, write_text_corpus

SCRIPT = "<script>window.hacked = 'script'</script> the old wet stone sees the small red fish and then it stays"
IMAGE = (
    "<img src=x onerror=\"window.hacked='image'\"><a href=\"javascript:window.hacked='link'\">the wet house follows a bird</a>"
)
CONTROLS = "the red bird\x00\x07\x1b[31m finds \u202ethe small stone\u202c and\u200b it \u2066stays\u2069 \x9b old \U000e0041 house\ufeff"
MARKS = "the cat" + "\u0336\u0489\u030a" * 400 + " hears the river"
NEEDLE = "a fish hears the small tree and the wet old river follows it"
LINE_BYTES = 10_000_000
HOSTILE = {
    "script": SCRIPT,
    "<img src=x onerror=\"window.hacked='id'\">": IMAGE,
    "controls \u202e\x07 id": CONTROLS,
    "marks": MARKS,
    "i" * 5000: "the dog finds a very old house in the tree then stays there",
}


@dataclass(frozen=True)
class Hostile:
    """Where the documents that want to break the page lie."""

    documents: Path
    shards: Path
    index: Path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TextCorpus:
    """One of its own: its shards get an index, which other tests of checkpoints must not find there."""
    return write_text_corpus(tmp_path_factory.mktemp("explored corpus"))


@pytest.fixture(scope="session")
def run(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On that corpus. Read only."""
    return run_on_text(corpus, tmp_path_factory.mktemp("explored runs") / "first")


@pytest.fixture(scope="session")
def index(corpus: TextCorpus) -> Path:
    """Of the run's own shards."""
    return build(load_config("trace_index", IndexConfig, [f"shards={corpus.shards}", "processes=1"]))


@pytest.fixture(scope="session")
def hostile(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    """Markup, control characters, marks without end, addresses that run code, and a line of 10 MB."""
    folder = tmp_path_factory.mktemp("hostile")
    documents, shards = folder / "documents", folder / "shards"
    documents.mkdir()
    about = {
        "url": "javascript:window.hacked='url'",
        "metadata": {
            "<b>name</b>": "<script>window.hacked='metadata'</script>",
            "long": "x" * 1_000_000,
            "deep": [[[[[[[[1]]]]]]]],
        },
    }
    filler = "the old cat sees the red dog "
    line = filler * (LINE_BYTES // len(filler) // 2)
    texts = HOSTILE | {"line": f"{line}{SCRIPT} {NEEDLE} {line}"}
    rows = [{"id": name, "text": text, "source": "hostile", **about} for name, text in texts.items()]
    rows.append(
        {"id": "honest", "text": "a small bird follows the honest fish", "source": "web", "url": "https://example.org/a?b=<c>"}
    )
    (documents / "hostile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenize_corpus.main([f"documents=[{documents}]", f"tokenizer={corpus.tokenizer}", f"output={shards}", "heldout_frac=0.0"])
    words = [f"shards={shards}", f"documents=[{documents}]", "processes=1"]
    return Hostile(documents, shards, build(load_config("trace_index", IndexConfig, words)))


def configure(run: Path, *words: str) -> ExploreConfig:
    return load_config("explore", ExploreConfig, [f"run={run}", "port=0", "device=cpu", *words], find_problems)


@pytest.fixture(scope="session")
def session(run: Path, corpus: TextCorpus, index: Path, hostile: Hostile) -> Session:
    """Of run and hostile documents together."""
    indexes = f"trace.indexes=['{index_folder_of(corpus.shards)}','{hostile.index}']"
    return Session(run, configure(run, indexes, "limits.text=20000", "limits.models=1"))


def client_of(session: Session) -> TestClient:
    """Asks as the page does, without a network."""
    app = Guard(build_app(session), set(), 12 * 2 * session.config.limits.text + 2**16)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture
def client(session: Session) -> TestClient:
    return client_of(session)


@pytest.fixture(scope="session")
def address(session: Session) -> Iterator[str]:
    """Of a server in a thread."""
    with listen("127.0.0.1", 0) as listener:
        server = server_of(build_app(session), session)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)
