"""`olmo trace influence`: what is printed, what the JSON holds, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints.trace.influence import influence_of
from checkpoints.trace.influence_command import lines, main
from checkpoints.trace.influence_results import LIMITS, InfluenceOptions
from data_tools.trace.opening import Trace
from olmo_train.errors import ConfigError
from tests.checkpoints.trace.influences import WORDS, build_index, longest_span, open_here, seen_text
from tests.texts import TextCorpus


@pytest.fixture(scope="module")
def index(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(corpus.shards, tmp_path_factory.mktemp("influence command"))


@pytest.fixture(scope="module")
def trace(run: Path, index: Path) -> Trace:
    return open_here(run, index)


def command(run: Path, index: Path, text: str, *more: str) -> list[str]:
    return [str(run), "--text", text, "--device", "cpu", "--null", "4", *more, f"indexes=['{index}']", *WORDS]


def table(out: str) -> list[list[str]]:
    """Cells of the documents' rows."""
    return [re.split(r" {2,}", line) for line in out.splitlines() if re.match(r"\d+\.", line)]


def test_the_documents_are_printed_by_influence(
    run: Path, index: Path, trace: Trace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = seen_text(trace, 7)
    main(command(run, index, text, "--json", str(tmp_path / "influence.json")))
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "influence.json").read_text())
    answer, span = longest_span(trace, text)
    assert out.startswith(f"span {span} of {len(answer.spans)}: {answer.spans[span].text!r}")
    assert [row[-2] if "layer" in row[-1] else row[-1] for row in table(out)] == [d["id"] for d in found["documents"]]
    first = found["documents"][0]
    assert first["strongest"][0]["part"] in table(out)[0][-1]
    assert any(str(step) in table(out)[0] for step in first["steps"])
    assert "nats that the document's share of the batch would have added to the span's log-probability at its visits" in out
    assert "windows of held-out text in the same rows" in out
    flat = " ".join(out.split())
    assert all(limit in flat for limit in LIMITS)
    assert found["documents"][0]["measured"][0]["experts"][0]["influence_E"]


def test_json_on_standard_output(run: Path, index: Path, trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(run, index, seen_text(trace, 7), "--json", "-", "--steps", "10,5", "--parameters", "experts,router")
    main([*words, "--layers", "1", "--precondition", "adam", "--rank", "cosine"])
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoints"] == [5, 10]
    options = found["options"]
    assert (options["parameters"], options["layers"], options["null"]) == (["experts", "router"], [1], 4)
    assert (options["precondition"], options["rank"]) == ("adam", "cosine")


def test_the_span_is_the_most_improbable_one_unless_it_is_named(
    run: Path, index: Path, trace: Trace, capsys: pytest.CaptureFixture[str]
) -> None:
    text = seen_text(trace, 7) + " zebra" + seen_text(trace, 9)
    answer, _ = longest_span(trace, text)
    assert len(answer.spans) > 1
    best = min(answer.spans, key=lambda span: span.log_prob).number
    main(command(run, index, text, "--steps", "10"))
    assert capsys.readouterr().out.startswith(f"span {best} of {len(answer.spans)}: ")
    other = next(span.number for span in answer.spans if span.number != best)
    main(command(run, index, text, "--steps", "10", "--span", str(other)))
    assert capsys.readouterr().out.startswith(f"span {other} of {len(answer.spans)}: {answer.spans[other].text!r}")


def test_what_is_not_known_is_said(trace: Trace) -> None:
    answer, span = longest_span(trace, seen_text(trace, 7))
    found = influence_of(trace, answer, span, InfluenceOptions(["blocks"], [0, 1], [10], "none", null=0, device="cpu"))
    printed = "\n".join(lines(replace(found, unit="nats per unit of step size", span="a" * 100), answer, span))
    assert f"'{'a' * 57}...'" in printed
    assert "percentile, z: not computed (--null 0)" in printed
    assert "influence: inner product of the gradients (the learning rate is not known)" in printed
    assert "weights (blocks of layers 0, 1), at steps: 10" in printed
    assert "in one step after each checkpoint, by plain gradient descent" in "\n".join(lines(found, answer, span))


def test_wrong_flags_are_told_together(run: Path, index: Path) -> None:
    with pytest.raises(ConfigError) as error:
        main(command(run, index, "", "--steps", "1,x", "--layers=-1"))
    assert error.value.problems == [
        "--steps=1,x must be whole numbers from 0 with commas between them, e.g. --steps 0,10",
        "--layers=-1 must be whole numbers from 0 with commas between them, e.g. --layers 0,10",
        "--text is empty; give the text to trace",
    ]


def test_wrong_options_are_told_before_the_text_is_traced(run: Path, index: Path) -> None:
    words = ["--seed", "-1", "--precondition", "newton", "--rank", "length", "--device", "tpu"]
    with pytest.raises(ConfigError) as error:
        main(command(run, index, "xyzzy", *words))
    assert error.value.problems == [
        "--precondition=newton is not one of auto, adam, none",
        "--rank=length is not one of influence, cosine",
        "--device=tpu is not one of auto, cpu, cuda",
        "--seed=-1 must be at least 0",
    ]


def test_a_text_that_stands_nowhere(run: Path, index: Path) -> None:
    with pytest.raises(ConfigError, match="no span of the text stands in training documents; a shorter one may"):
        main(command(run, index, "xyzzy"))


def test_a_place_for_the_json_is_looked_for_before_the_work(run: Path, index: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--json=.*no/where.json is in a folder that does not exist"):
        main(command(run, index, "the cat", "--json", str(tmp_path / "no" / "where.json")))
