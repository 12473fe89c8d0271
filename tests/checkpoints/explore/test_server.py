"""What the explorer answers, what it refuses, and that it writes nothing."""

import json
import os
import shutil
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from checkpoints.explore.beliefs import spread
from checkpoints.explore.config import ExploreConfig
from checkpoints.explore.documents import MAX_STRING, clip
from checkpoints.explore.generation import Turns
from checkpoints.explore.session import Session
from checkpoints.generate.engine import Limits, generate
from checkpoints.generate.sampling import Sampling
from checkpoints.load import load_model
from checkpoints.opening import open_step_folder
from data_tools.documents import read_documents
from data_tools.trace.build_index import index_folder_of
from olmo_train.errors import ConfigError
from olmo_train.tokenizer import Tokenizer
from tests.checkpoints.explore.conftest import CONTROLS, IMAGE, LINE_BYTES, NEEDLE, SCRIPT, Hostile, client_of, configure
from tests.texts import TextCorpus


def lines(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def refusal(response: Any) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    return response.status_code, response.json()["message"]


def first_words(corpus: TextCorpus, n: int = 12) -> str:
    """Of a training document."""
    (path, *_) = sorted(corpus.documents.glob("*.jsonl"))
    text = max((document.text for document in read_documents(path)), key=len)
    return " ".join(text.split()[3 : 3 + n])


# ---- the run ---------------------------------------------------------------------------------------------------------------


def test_the_timeline_has_what_the_run_wrote(client: TestClient, run: Path) -> None:
    facts = client.get("/api/run").json()
    assert [row["step"] for row in facts["checkpoints"]] == [0, 1, 2, 4, 5, 10]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert facts["training"]["loss"] == [line["loss"] for line in metrics if line["step"] > 0]
    last = facts["checkpoints"][-1]
    assert last["loss"] == metrics[-1]["loss"]
    assert last["tokens"] == metrics[-1]["tokens"]
    assert last["heldout_loss"] == metrics[-1]["eval"]["heldout"]["all"]["loss"]
    assert {entry["label"] for entry in last["evaluations"]} == {"all", "animals", "places"}
    assert facts["heldout"]["all"] == [
        [line["step"], line["eval"]["heldout"]["all"]["loss"]] for line in metrics if "eval" in line
    ]
    logged = [line for line in metrics if "layers" in line]
    assert facts["load"]["step"] == [line["step"] for line in logged]
    assert facts["load"]["load_max_over_mean"] == [line["layers"]["load_max_over_mean"] for line in logged]
    assert (facts["last_step"], facts["trained_step"], facts["model"]["n_experts"]) == (10, 10, 4)
    assert facts["experts"] is None
    assert "hostile" in facts["trace"]["sources"]


def test_loads_of_experts_are_told_where_they_were_measured(copy: Path) -> None:
    routing = {"layers": [{"layer": 1, "balance": {"load": [0.5, 0.5, 0.0, 0.0]}}]}
    points = [{"step": 10, "routing": routing}, {"step": 5, "routing": None}]
    (copy / "inspect").mkdir(exist_ok=True)
    (copy / "inspect/curves.json").write_text(json.dumps({"series": {"checkpoints": points}}))
    assert Session(copy, configure(copy)).facts()["experts"] == {"10": {"1": [0.5, 0.5, 0.0, 0.0]}}
    (copy / "inspect/curves.json").write_text("cut shor")
    assert Session(copy, configure(copy)).facts()["experts"] is None


def test_without_an_index_the_rest_is_served_and_what_is_missing_said(run: Path, tmp_path: Path) -> None:
    session = Session(run, configure(run, f"trace.indexes=[{tmp_path / 'none'}]"))
    (note,) = session.notes()
    assert "texts cannot be traced" in note
    assert "olmo trace index shards=" in note
    client = client_of(session)
    facts = client.get("/api/run").json()
    assert facts["trace"] is None
    assert "olmo trace index shards=" in facts["trace_problem"]
    assert lines(client.post("/api/generate", json={"step": 10, "max_tokens": 2}))[-1]["event"] == "done"
    for response in (client.post("/api/trace", json={"text": "x"}), client.get("/api/document?corpus=0&file=0&offset=0")):
        status, message = refusal(response)
        assert status == 422
        assert "olmo trace index shards=" in message


def test_without_shards_the_timeline_is_served(copy: Path, tmp_path: Path) -> None:
    text = (copy / "config.yaml").read_text()
    for path in [copy / "config.yaml", *copy.glob("steps/*/config.yaml")]:
        path.write_text(text.replace("path: ", f"path: {tmp_path}/gone", 1))
    session = Session(copy, configure(copy))
    assert any("its tokenizer, cannot be read" in note for note in session.notes())
    client = client_of(session)
    assert len(client.get("/api/run").json()["checkpoints"]) == 6
    assert refusal(client.post("/api/generate", json={"step": 10}))[0] == 422


# ---- text out --------------------------------------------------------------------------------------------------------------


def test_the_pieces_of_a_generation_are_what_the_model_says(client: TestClient, run: Path, corpus: TextCorpus) -> None:
    tokenizer = Tokenizer(corpus.tokenizer)
    ids = [tokenizer.eos_id, *tokenizer.encode("the old")]
    model = load_model(open_step_folder(run / "steps/step00000005"), __import__("torch").device("cpu"))
    (sample,) = generate(model, [ids], Limits(8, 16, tokenizer.eos_id), Sampling(temperature=0))
    asked = {"step": 5, "prompt": "the old", "max_tokens": 8, "temperature": 0}
    lines(client.post("/api/generate", json={"step": 10, "max_tokens": 1}))  # limits.models=1: step 5 is not there
    events = lines(client.post("/api/generate", json=asked))
    assert events[0] == {"event": "loading", "step": 5}
    text = "".join(event["text"] for event in events if event["event"] == "piece")
    assert text == tokenizer.decode(sample.tokens) == events[-1]["text"]
    assert (events[-1]["n_tokens"], events[-1]["finish"]) == (len(sample.tokens), "length")
    assert events[-1]["log_prob"] == pytest.approx(sample.logprob, abs=1e-4)
    again = lines(client.post("/api/generate", json=asked))
    assert again == events[1:]  # the model is still there
    lines(client.post("/api/generate", json={"step": 10, "max_tokens": 1}))
    assert lines(client.post("/api/generate", json=asked))[0]["event"] == "loading"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"step": 3}, "step=3 is not saved; saved: 0, 1, 2, 4, 5, 10"),
        ({"step": 10, "max_tokens": 2000}, "max_tokens=2000 must be at most limits.max_tokens=1000"),
        (
            {"step": 10, "prompt": "the old cat sees " * 9},
            "tokens, the model sees 16 at a time, an end of text among them; shorten it",
        ),
        ({"step": 10, "prompt": "\ud800"}, "prompt: Value error, has half of a surrogate pair, which is no character"),
        ({"step": -1}, "step: Input should be greater than or equal to 0"),
        ({"step": "10"}, "step: Input should be a valid integer"),
        ({"step": 10, "max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"step": 10, "temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ({"step": 10, "word": 1}, "word: Extra inputs are not permitted"),
        ({}, "step: Field required"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_a_generation_that_cannot_be_is_refused(client: TestClient, asked: Any, message: str) -> None:
    response = client.post("/api/generate", content=json.dumps(asked), headers={"content-type": "application/json"})
    status, told = refusal(response)
    assert status == 422
    assert message in told


def test_a_damaged_checkpoint_is_the_last_event(copy: Path) -> None:
    for path in (copy / "steps/step00000010").glob("model-*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    client = client_of(Session(copy, configure(copy)))
    event = lines(client.post("/api/generate", json={"step": 10, "max_tokens": 2}))[-1]
    assert event["event"] == "error"
    assert "step00000010" in event["message"]
    assert (
        lines(client.post("/api/generate", json={"step": 5, "max_tokens": 2}))[-1]["event"] == "done"
    )  # the turn was given back


def test_one_computes_and_the_others_hear_that_they_wait() -> None:
    turns = Turns()
    assert list(turns.wait()) == []
    waiting = turns.wait()
    assert next(waiting) == {"event": "waiting", "ahead": 1}
    waiting.close()  # this client left
    turns.leave()
    assert list(turns.wait()) == []
    turns.leave()


def test_a_client_that_leaves_ends_its_generation(address: str, session: Session) -> None:
    body = json.dumps({"step": 10, "prompt": "", "max_tokens": 15}).encode()
    request = urllib.request.Request(f"{address}api/generate", body, {"Content-Type": "application/json"})
    assert list(session.turns.wait()) == []  # nobody else's turn: the client below waits
    with urllib.request.urlopen(request, timeout=20) as response:
        assert json.loads(response.readline())["event"] == "waiting"
    session.turns.leave()
    done = threading.Event()
    threading.Thread(target=lambda: ([*session.turns.wait()], session.turns.leave(), done.set()), daemon=True).start()
    assert done.wait(20)


# ---- text in ---------------------------------------------------------------------------------------------------------------


def test_a_text_is_led_back_to_documents_and_steps(client: TestClient, corpus: TextCorpus) -> None:
    text = first_words(corpus)
    answer = client.post("/api/trace", json={"text": text}).json()
    assert answer["text"] == text
    span = max(answer["spans"], key=lambda span: span["end"] - span["start"])
    assert (span["char_start"], span["char_end"]) == (0, len(text))
    documents = [answer["documents"][n] for n in span["documents"]]
    assert documents
    snippet = next(s for s in documents[0]["snippets"] if s["span"] == span["number"])
    assert snippet["match"].strip() == text
    place = snippet["sighted"]["place"]
    window = client.get("/api/document", params={**place, "length": 3, "n": 40}).json()
    assert window["id"] == documents[0]["id"]
    assert (window["start"], window["end"]) == (0, min(40, window["n_tokens"]))
    assert "".join(piece["text"] for piece in window["pieces"]) in snippet["before"] + snippet["match"] + snippet["after"]


def test_the_probability_of_a_span_is_told_checkpoint_by_checkpoint(client: TestClient, corpus: TextCorpus) -> None:
    text = first_words(corpus, 8)
    asked = {"text": text, "span": text[:20].rsplit(" ", 1)[0]}
    events = lines(client.post("/api/belief", json=asked))
    assert [event["step"] for event in events if event["event"] == "progress"] == [0, 1, 2, 4, 5, 10]
    belief = events[-1]["belief"]
    assert [point["step"] for point in belief["span"]["points"]] == [0, 1, 2, 4, 5, 10]
    assert belief["controls"] or events[-1]["notes"]
    assert lines(client.post("/api/belief", json=asked)) == [events[-1]]  # kept in memory
    some = lines(client.post("/api/belief", json={**asked, "steps": [5, 10]}))
    assert [point["step"] for point in some[-1]["belief"]["span"]["points"]] == [5, 10]
    first = belief["span"]["points"][-1]["log_prob"]
    assert some[-1]["belief"]["span"]["points"][-1]["log_prob"] == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"span": "never there"}, "is no part of"),
        ({"steps": [3]}, "step=3 is not saved; saved: 0, 1, 2, 4, 5, 10"),
        ({"steps": [10] * 65}, "steps: 65 are asked for, at most limits.steps=64 are measured"),
        ({"place": "7:0:0"}, "there is no index 7"),
        ({"place": "a:b:c"}, "place: String should match pattern"),
        ({"context": "dream"}, "context: Input should be 'row', 'document' or 'text'"),
    ],
)
def test_a_probability_that_cannot_be_is_refused(
    client: TestClient, corpus: TextCorpus, more: dict[str, Any], message: str
) -> None:
    status, told = refusal(client.post("/api/belief", json={"text": "the old cat", "span": "old", **more}))
    assert status == 422
    assert message in told


def test_without_held_out_documents_the_curve_stands_alone(run: Path, hostile: Hostile) -> None:
    client = client_of(Session(run, configure(run, f"trace.indexes=[{hostile.index}]")))
    done = lines(client.post("/api/belief", json={"text": NEEDLE, "span": "hears the small tree"}))[-1]
    assert done["belief"]["controls"] == []
    assert len(done["belief"]["span"]["points"]) == 6
    assert any("There are no controls" in note for note in done["notes"])


@pytest.mark.parametrize(("n", "most", "expected"), [(3, 5, (0, 1, 2)), (9, 5, (0, 2, 4, 6, 8)), (100, 2, (0, 99)), (4, 1, (0,))])
def test_steps_are_spread_over_the_run(n: int, most: int, expected: tuple[int, ...]) -> None:
    assert spread(list(range(n)), most) == expected


# ---- hostile documents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SCRIPT, IMAGE, CONTROLS])
def test_hostile_documents_come_as_the_text_they_are(client: TestClient, text: str) -> None:
    response = client.post("/api/trace", json={"text": text})
    assert response.headers["content-type"] == "application/json"
    assert response.content.isascii()
    answer = response.json()
    found = [s for document in answer["documents"] for s in document["snippets"]]
    assert any(text in s["before"] + s["match"] + s["after"] for s in found)
    for document in answer["documents"]:
        assert document["url"] is None or document["url"].startswith("https://")
        assert len(json.dumps(document["metadata"])) < 5 * MAX_STRING
        assert len(document["id"]) < 2 * MAX_STRING


def test_any_part_of_a_line_of_10_mb_is_read_alone(client: TestClient) -> None:
    answer = client.post("/api/trace", json={"text": NEEDLE}).json()
    (document,) = [d for d in answer["documents"] if d["id"] == "line"]
    place = next(s for s in document["snippets"] if s["match"].strip() == NEEDLE)["sighted"]["place"]
    response = client.get("/api/document", params={**place, "length": 20, "n": 300})
    window = response.json()
    assert len(response.content) < 20_000
    assert window["n_tokens"] > LINE_BYTES / 20
    assert window["end"] - window["start"] == 300
    assert [piece["is_match"] for piece in window["pieces"]] == [False, True, False]
    assert "</script>" in window["pieces"][0]["text"]
    n = window["n_tokens"]
    texts = []
    for start in (0, 300, n - 300, n + 5):
        page = client.get("/api/document", params={**place, "start": start, "n": 300}).json()
        assert page["start"] == min(start, n - 300)
        texts.append("".join(piece["text"] for piece in page["pieces"]))
    assert texts[0].startswith("the old cat sees the red dog the old")
    assert texts[2] == texts[3]
    assert texts[2].endswith("the red dog ")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("corpus=9&file=0&offset=0", "corpus=9 must be below 2, the number of indexes"),
        ("corpus=0&file=99&offset=0", "file=99 must be below"),
        ("corpus=0&file=0&offset=999999999", "offset=999999999 must be below"),
        ("corpus=0&file=0&offset=-1", "offset: Input should be greater than or equal to 0"),
        ("corpus=0&file=0&offset=0&n=0", "n=0 must be 1 to limits.window=2000"),
        ("corpus=0&file=0&offset=0&n=2001", "n=2001 must be 1 to limits.window=2000"),
        ("corpus=0&file=0&offset=0&start=99999999999999999999", "start: Input should be less than or equal to"),
        ("corpus=../../etc&file=0&offset=0", "corpus: Input should be a valid integer"),
    ],
)
def test_a_place_that_is_not_there_is_refused(client: TestClient, query: str, message: str) -> None:
    status, told = refusal(client.get(f"/api/document?{query}"))
    assert status == 422
    assert message in told


def place_of(client: TestClient, text: str, document_id: str) -> dict[str, int]:
    answer = client.post("/api/trace", json={"text": text}).json()
    (document,) = [d for d in answer["documents"] if d["id"] == document_id]
    return document["snippets"][0]["sighted"]["place"]


def test_a_blocked_document_is_in_no_window(client: TestClient, run: Path, hostile: Hostile, tmp_path: Path) -> None:
    place = place_of(client, SCRIPT, "script") | {"corpus": 0}
    (tmp_path / "blocked.txt").write_text("script\n")
    words = [f"trace.indexes=[{hostile.index}]", f"trace.privacy.blocked=[{tmp_path / 'blocked.txt'}]"]
    other = client_of(Session(run, configure(run, *words)))
    told = refusal(other.get("/api/document", params=place))
    assert told == (422, "the document that stands there is blocked (privacy.blocked)")
    names = [d["id"] for d in other.post("/api/trace", json={"text": SCRIPT}).json()["documents"]]
    assert "script" not in names
    (tmp_path / "blocked.txt").write_text("")
    assert other.get("/api/document", params=place).json()["id"] == "script"


def test_shards_that_are_cut_while_they_are_served_are_told_and_the_server_lives(
    run: Path, hostile: Hostile, tmp_path: Path
) -> None:
    shards = shutil.copytree(hostile.shards, tmp_path / "shards")
    client = client_of(Session(run, configure(run, f"trace.indexes=[{shards / 'trace'}]")))
    assert client.post("/api/trace", json={"text": SCRIPT}).json()["spans"]
    for name in ("part-00000.train.sa", "part-00000.train.top"):
        path, whole = shards / "trace" / name, (shards / "trace" / name).read_bytes()
        os.truncate(path, 4)
        status, told = refusal(client.post("/api/trace", json={"text": SCRIPT}))
        assert status == 409
        assert f"{name}: 4 bytes, " in told
        path.unlink()
        assert "it is being searched; put it back" in refusal(client.post("/api/trace", json={"text": SCRIPT}))[1]
        path.write_bytes(whole)
    for tokens in shards.glob("*/*.npy"):
        os.truncate(tokens, 4)
    status, told = refusal(client.post("/api/trace", json={"text": SCRIPT}))
    assert (status, ".npy: 4 bytes, " in told) == (409, True)


def test_personal_data_is_replaced_in_windows(client: TestClient, corpus: TextCorpus, run: Path, hostile: Hostile) -> None:
    place = place_of(client, SCRIPT, "script") | {"corpus": 0, "n": 2000}
    word = "old wet"
    other = client_of(
        Session(run, configure(run, f"trace.indexes=[{hostile.index}]", f"trace.privacy.patterns={{words: '{word}'}}"))
    )
    shown = other.get("/api/document", params=place).json()
    assert shown["pieces"][0]["text"] == SCRIPT.replace(word, "[words]")
    before = SCRIPT.split(word)[0]
    n = len(Tokenizer(corpus.tokenizer).encode(before + "old"))  # the window ends within what is replaced
    cut = other.get("/api/document", params={**place, "start": 0, "n": n}).json()["pieces"][0]["text"]
    assert cut == before + "[words]"


def test_long_texts_of_metadata_are_cut_and_said_to_be() -> None:
    assert clip("x" * 1005) == "x" * 1000 + "\u2026 (5 more characters)"
    assert clip(list(range(103))) == [*range(100), "\u2026 (3 more)"]
    many = clip({str(n): n for n in range(102)})
    assert len(many) == 101
    assert many["\u2026"] == "2 more"
    assert clip([[[[[[[1]]]]]]]) == [[[[[["\u2026"]]]]]]
    assert clip({"a": None, "b": True, "c": 1.5}) == {"a": None, "b": True, "c": 1.5}


# ---- nothing is written ----------------------------------------------------------------------------------------------------


def snapshot(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with size and time of its last change."""
    found = {}
    for folder in folders:
        for parent, names, files in os.walk(folder):
            for name in [*names, *files, "."]:
                status = os.stat(os.path.join(parent, name))
                found[os.path.join(parent, name)] = (status.st_size, status.st_mtime_ns)
    return found


def test_nothing_is_written(
    run: Path, corpus: TextCorpus, index: Path, hostile: Hostile, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = (run, corpus.shards, index_folder_of(corpus.shards), hostile.shards, tmp_path)
    before = snapshot(*folders)
    client = client_of(Session(run, configure(run)))
    text = first_words(corpus, 8)
    client.get("/api/run")
    client.post("/api/trace", json={"text": text})
    lines(client.post("/api/generate", json={"step": 10, "max_tokens": 4}))
    assert lines(client.post("/api/belief", json={"text": text, "span": text}))[-1]["event"] == "done"
    client.get("/api/document?corpus=0&file=0&offset=0")
    assert snapshot(*folders) == before


def test_a_run_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        Session(tmp_path, ExploreConfig(run=str(tmp_path)))
