"""What the user asks becomes the span that is measured; what was measured is told in words, as JSON and as a figure."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from checkpoints.trace import belief_command
from checkpoints.trace.belief_command import lines_of
from checkpoints.trace.belief_figure import belief_svg
from checkpoints.trace.queries import Context
from checkpoints.trace.results import Belief, BeliefCurve, BeliefPoint, Estimate, ExpertReading, Matching
from checkpoints.trace.span_choice import SpanChoice, choose_query, first_place
from data_tools.trace.answer import Mark, Place, Sight
from data_tools.trace.opening import Trace, load_trace_config, open_trace
from data_tools.trace.spans import maximal_spans
from data_tools.trace.text_tokens import encode
from olmo_train.errors import ConfigError
from tests.checkpoints.trace.planted import PLANTED, Planted

TEXT = "a cat stays and the old river hears it red bird small house and then"
SPAN = " the old river hears it red bird small house"


@pytest.fixture(scope="module")
def trace(planted: Planted) -> Trace:
    return open_trace(str(planted.run), load_trace_config([]))


def text_of(trace: Trace, ids: object) -> str:
    return trace.searcher.tokenizer.decode(list(ids))  # type: ignore[call-overload]


# ---- the choice ------------------------------------------------------------------------------------------------------------


def test_the_first_ranked_span_is_taken_at_its_first_sight(trace: Trace) -> None:
    query = choose_query(trace, SpanChoice(TEXT))
    best = maximal_spans(trace.searcher, encode(trace.searcher.tokenizer, TEXT), trace.config.spans)[0]
    assert list(query.ids) == best.ids
    assert trace.history is not None
    firsts = {}
    for place in trace.searcher.places(trace.searcher.find(best.ids)):
        sights = trace.history.sighted(trace.searcher, place, len(best.ids)).sights
        learned = [s.step for s in sights if s.mark == Mark.LEARNED and s.predicted_start < s.token_end]
        firsts[place] = min(learned, default=10**9)
    assert query.place is not None
    assert firsts[query.place] == min(firsts.values())


def test_a_named_span_is_the_tokens_that_touch_it(trace: Trace) -> None:
    assert text_of(trace, choose_query(trace, SpanChoice(TEXT, SPAN)).ids) == SPAN
    shorter = choose_query(trace, SpanChoice(TEXT, "iver hears it re"))
    assert "iver hears it re" in text_of(trace, shorter.ids)
    assert len(text_of(trace, shorter.ids)) <= len(" river hears it red")


def test_the_first_word_of_a_text_stands_after_a_space_in_documents(trace: Trace) -> None:
    query = choose_query(trace, SpanChoice("old river hears it red", "old river hears it red"))
    assert text_of(trace, query.ids) == " old river hears it red"
    assert query.place is not None


def test_the_context_is_the_one_asked_for(trace: Trace) -> None:
    text = choose_query(trace, SpanChoice(TEXT, SPAN, Context.TEXT))
    assert text_of(trace, text.context_ids) == "<|endoftext|>a cat stays and"
    assert text.context == "text"
    assert text.place is not None
    document = choose_query(trace, SpanChoice(TEXT, SPAN, Context.DOCUMENT))
    before = text_of(trace, document.context_ids).removeprefix("<|endoftext|>")
    assert PLANTED[: PLANTED.index(SPAN)].endswith(before)
    assert document.context == "document"


def test_a_place_may_be_named(trace: Trace) -> None:
    ids = choose_query(trace, SpanChoice(TEXT, SPAN)).ids
    place = trace.searcher.places(trace.searcher.find(ids))[3]
    words = f"{place.corpus}:{place.file}:{place.offset}"
    assert choose_query(trace, SpanChoice(TEXT, SPAN, place=words)).place == place
    with pytest.raises(ConfigError) as error:
        choose_query(trace, SpanChoice(TEXT, SPAN, place=f"0:0:{place.offset + 1}"))
    assert str(error.value).startswith(f"--place=0:0:{place.offset + 1}: ")
    assert str(error.value).endswith(" stands there, not the span; take the place from `olmo trace text --json`")


def test_without_a_history_the_first_place_is_any(trace: Trace) -> None:
    ids = list(choose_query(trace, SpanChoice(TEXT, SPAN)).ids)
    assert first_place(replace(trace, history=None), ids) in trace.searcher.places(trace.searcher.find(ids))
    assert first_place(trace, [5, 5, 5, 5, 5, 5, 5, 5, 5]) is None


def test_what_is_no_span_is_refused(trace: Trace, planted: Planted) -> None:
    cases = {
        SpanChoice(""): "--text='' has no tokens; give some text",
        SpanChoice(
            "zzz qqq"
        ): "--text: no span of 4 tokens or more stands in a training document; lower spans.min_tokens, or name one "
        "with --span to measure it as it is",
        SpanChoice(TEXT, "blue"): "--span='blue' is no part of --text; copy it from there",
        SpanChoice(TEXT, ""): "--span='' is no part of --text; copy it from there",
        SpanChoice("zzz qqq", "qqq", Context.ROW): "--context=row: no training document holds the span, so it has no row; give "
        "--context text",
    }
    for choice, problem in cases.items():
        with pytest.raises(ConfigError) as error:
            choose_query(trace, choice)
        assert str(error.value) == problem
    shards = open_trace(str(planted.shards), load_trace_config([]))
    with pytest.raises(ConfigError) as error:
        choose_query(shards, SpanChoice(TEXT))
    assert str(error.value) == (
        f"{planted.shards} is no run and no release: a belief is of checkpoints; give the folder of a run"
    )


# ---- the command -----------------------------------------------------------------------------------------------------------


def test_the_command_tells_all(planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(planted.run, tmp_path / "run"))
    target, figure = tmp_path / "belief.json", tmp_path / "belief.svg"
    words = ["--text", TEXT, "--span", SPAN, "--steps", "0,60,20", "--controls", "16", "--experts"]
    belief_command.main([str(run), *words, "--json", str(target), "--figure", str(figure), "spans.min_tokens=5"])
    out = capsys.readouterr()
    values = json.loads(target.read_text())
    assert [point["step"] for point in values["span"]["points"]] == [0, 20, 60]
    assert len(values["controls"]) == 16
    lines = out.out.splitlines()
    assert lines[0].startswith(f"span: {SPAN!r} (22 tokens), document planted ")
    table = next(
        i
        for i, line in enumerate(lines)
        if line.split() == ["step", "log-prob", "per", "token", "controls", "difference", "routing", "seen", "by", "steps"]
    )
    for line, point in zip(lines[table + 1 :], values["span"]["points"], strict=False):
        assert line.split()[:2] == [str(point["step"]), f"{point['log_prob']:.3f}"]
    total = values["total"]
    assert any(
        line.startswith("since the first sight: steps 0 to 60") and f"effect {total['effect']:+.3f} nats" in line
        for line in lines
    )
    assert [line.removeprefix("note: ") for line in lines if line.startswith("note: ")] == values["cautions"]
    assert len(re.findall(r"^step \d+ .*\(\d of 3, ", out.err, re.MULTILINE)) == 3
    assert ElementTree.parse(figure).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    belief_command.main([str(run), *words, "--json", "-"])
    assert json.loads(capsys.readouterr().out) == values


def test_wrong_flags_are_refused_together(planted: Planted, tmp_path: Path) -> None:
    run = str(planted.run)
    with pytest.raises(ConfigError) as error:
        belief_command.main(
            [
                run,
                "--text",
                "x",
                "--controls",
                "-1",
                "--caliper",
                "0",
                "--max-shared",
                "-1",
                "--seed",
                "-1",
                "--cache",
                "c",
                "--no-cache",
            ]
        )
    assert error.value.problems == [
        "--controls=-1 must not be negative; 0: the curve alone",
        "--caliper=0.0 must be positive",
        "--max-shared=-1 must be at least 0",
        "--seed=-1 must be at least 0",
        "--cache=c and --no-cache exclude each other; drop one",
    ]
    for flag in ("--json", "--figure"):
        with pytest.raises(ConfigError, match=f"{flag}=.*is in a folder that does not exist"):
            belief_command.main([run, "--text", "x", flag, str(tmp_path / "no" / "file")])
    with pytest.raises(SystemExit):
        belief_command.main([run, "--text", "x", "--steps", "ten"])


def test_a_figure_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --figure a file that can be written"):
        belief_command.write_figure(tmp_path / "file.json" / "x.svg", belief(tmp_path))


# ---- words and figure ------------------------------------------------------------------------------------------------------


def sight(step: int, mark: Mark, row: int = 3) -> Sight:
    return Sight(step, row, 0, 4, 7, 0, 3, 0, mark, None, None)


def curve(values: list[float], text: str = "one two") -> BeliefCurve:
    points = [BeliefPoint(step, step * 10, value, [value / 2] * 2) for step, value in zip((0, 10, 20), values, strict=True)]
    return BeliefCurve(text, "before", ["one", " two"], "d", -9.0, [sight(12, Mark.LEARNED)], points, Place(0, 0, 5), "row", 4)


def belief(_: object = None, text: str = "one two") -> Belief:
    span = curve([-8.0, -6.0, -2.0], text)
    estimate = Estimate(10, 20, 4.0, 1.0, 3.0, 0.5, 1.5, 4.5, 0.2, 4, [12], 0.2)
    sights = [
        sight(5, Mark.SKIPPED),
        sight(12, Mark.LEARNED),
        sight(12, Mark.LEARNED, 4),
        sight(18, Mark.MASKED),
        sight(30, Mark.FUTURE),
    ]
    controls = [curve([-9.0 + k, -8.0 + k, -7.0 + k]) for k in range(4)]
    matching = Matching(4, 4, 3, 100, 0.5, 0.01, 3, 0, True)
    return Belief("runs/first", span, controls, [estimate], sights, 5, ["a caution"], 2, 2, estimate, [estimate], None, matching)


def test_the_lines_say_who_saw_it_and_how() -> None:
    lines = lines_of(belief())
    assert lines[0] == "span: 'one two' (2 tokens), document d at 0:0:5; 2 times in training documents"
    assert lines[1] == "context: 4 tokens of the row"
    rows = [re.split(r" {2,}", line.strip()) for line in lines[4:8]]
    assert rows == [
        ["step", "log-prob", "per token", "controls", "difference", "seen by steps"],
        ["0", "-8.000", "-4.000", "-7.500", "-0.500"],
        ["10", "-6.000", "-3.000", "-6.500", "+0.500", "5 (skipped, elsewhere)"],
        ["20", "-2.000", "-1.000", "-5.500", "+3.500", "12, 12 (elsewhere), 18 (masked, elsewhere)"],
    ]
    assert lines[9] == (
        "steps 10 to 20 (step 12 saw it): effect +3.000 nats, 95 % interval +1.500 to +4.500, beyond what the controls show; span "
        "+4.000, 4 controls +1.000; p = 0.2"
    )
    assert lines[10].startswith("since the first sight: steps 10 to 20")
    assert lines[-1] == "note: a caution"


def test_experts_are_told_by_layer() -> None:
    reading = ExpertReading(3, [0.5, 0.0, 0.25, 0.25], [0, 2], 0.75)
    found = belief()
    points = [replace(point, experts=[reading]) for point in found.span.points]
    lines = lines_of(replace(found, span=replace(found.span, points=points)), with_experts=True)
    assert re.split(r" {2,}", lines[5].strip())[5] == "75.0%"
    assert [re.split(r" {2,}", line.strip()) for line in lines[9:11]] == [
        ["step", "layer", "as at the end", "experts"],
        ["0", "3", "75.0%", "0: 50.0%", "2: 25.0%", "3: 25.0%"],
    ]
    assert "no experts: the model is dense" in lines_of(found, with_experts=True)


def test_the_figure_has_the_curve_the_band_and_the_marks() -> None:
    root = ElementTree.fromstring(belief_svg(belief()))
    by_class: dict[str, list[ElementTree.Element]] = {}
    for element in root.iter():
        by_class.setdefault(element.get("class", ""), []).append(element)

    def path(name: str) -> list[tuple[float, float]]:
        words = re.findall(r"[ML]?(-?[\d.]+) (-?[\d.]+)", by_class[name][0].get("d", ""))
        return [(float(x), float(y)) for x, y in words]

    (x0, y0), (x1, y1), (x2, y2) = path("span")
    assert x2 - x1 == pytest.approx(x1 - x0, abs=0.2)
    assert (y0 - y1) / (y1 - y2) == pytest.approx(2 / 4, abs=0.02)  # -8, -6, -2: up the page
    band = path("band")
    assert len(band) == 6
    scale = (y0 - y2) / 6
    assert y0 - band[0][1] == pytest.approx((-6.3 + 8.0) * scale, abs=0.2)  # 90 % of -9, -8, -7, -6
    assert y0 - band[-1][1] == pytest.approx((-8.7 + 8.0) * scale, abs=0.2)
    assert y0 - path("median")[0][1] == pytest.approx(0.5 * scale, abs=0.2)
    ticks = {
        name: [e for e in by_class.get(name, []) if e.find("{*}title") is not None] for name in ("seen", "elsewhere", "untaught")
    }
    assert {name: [e.find("{*}title").text for e in found] for name, found in ticks.items()} == {  # type: ignore[union-attr]
        "seen": ["step 12, row 3: learned"],
        "elsewhere": ["step 12, row 4: learned"],
        "untaught": ["step 5, row 3: skipped", "step 18, row 3: masked"],
    }
    at = float(re.match(r"M([\d.]+)", ticks["seen"][0].get("d", "")).group(1))  # type: ignore[union-attr]
    assert at == pytest.approx(x0 + (x2 - x0) * 12 / 20, abs=0.2)


def test_a_hostile_span_stays_text() -> None:
    hostile = '</text><script>alert(1)</script>" onload="x\x1b[31m\u202e\n'
    words = belief_svg(belief(text=hostile))
    root = ElementTree.fromstring(words)
    assert {element.tag.split("}")[1] for element in root.iter()} <= {"svg", "style", "rect", "text", "path", "circle", "title"}
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
    assert "\x1b" not in words
    assert "\u202e" not in words
    assert "\x1b" not in "\n".join(lines_of(belief(text=hostile)))


def test_a_figure_of_one_checkpoint_without_controls_is_drawn() -> None:
    found = belief()
    one = replace(
        found, span=replace(found.span, points=found.span.points[:1]), controls=[], all_sights=[], matching=None, total=None
    )
    assert ElementTree.fromstring(belief_svg(one)) is not None


def test_a_belief_is_json() -> None:
    values = json.loads(json.dumps(asdict(belief())))
    assert values["all_sights"][0]["mark"] == "skipped"
    assert values["span"]["place"] == {"corpus": 0, "file": 0, "offset": 5}
