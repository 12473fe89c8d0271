"""Numbers of a lineage, of attributes and of shards, against counts made by hand."""

import json
import random

import numpy as np
import pytest

from data_tools.inspect import stat
from data_tools.inspect.sketch import Sketch
from olmo_train.data.shards import Corpus
from tests.data_tools.inspect.pipeline import Made
from tests.data_tools.inspect.test_find import told
from tests.data_tools.texts import refusal


def test_each_stage_says_what_it_read_rejected_and_dropped(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(told(capsys, stat.main, "shards", "--json"))
    rows = {row["stage"]: row for row in values["stages"]}
    assert list(rows) == ["ingest", "dedupe", "tag", "mix", "tokenize"]
    assert (rows["ingest"]["lines"], rows["ingest"]["rejected"]) == (43, {"wrong_type": 1})
    assert rows["mix"]["totals"]["by_source"]["web"]["documents"] == 29
    assert rows["mix"]["dropped"] == {"web": {"rules__length__characters < 10": 1}}
    assert rows["dedupe"]["duplicates"] == {"web": {"document": 1}}
    corpus = Corpus("shards")
    counts = np.bincount(np.concatenate([f.read(0, f.entry.tokens) for f in corpus.files]), minlength=300)
    frequent = values["shards"]["frequent"]
    assert [row["count"] for row in frequent] == sorted(counts.tolist(), reverse=True)[:20]
    assert all(counts[row["id"]] == row["count"] for row in frequent)
    web = values["shards"]["by_source"]["web"]
    assert web["tokens_per_document"]["count"] == web["documents"] == 29
    text = told(capsys, stat.main, "shards")
    assert "web                  29 documents, " in text
    assert "dropped 1 (rules__length__characters < 10 1)" in text
    assert "rejected 1 (wrong_type 1)" in text


def test_attributes_are_counted_exactly(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("base", "--attributes", "rules", "--pass", "length__characters >= 100")
    values = json.loads(told(capsys, stat.main, *words, "--json"))
    assert values["documents"] == 42
    lengths = values["attributes"]["rules__length__characters"]
    assert lengths["documents"] == lengths["spans"] == 42
    assert lengths["scores"]["min"] == 5
    assert sum(n for _, _, n in lengths["scores"]["histogram"]) == 42
    assert values["attributes"]["rules__pii__secret"]["documents"] == 1
    assert 0 < values["passed"]["length__characters >= 100"] < 42
    assert "length__characters >= 100: " in told(capsys, stat.main, *words)


def test_what_is_not_there_is_refused(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(stat.main, ["base", "--pass", "x > 1"], capsys) == "--pass goes with --attributes NAME"
    message = "--attributes=x: base/attributes has none of this name; it has exact, rules"
    assert refusal(stat.main, ["base", "--attributes", "x"], capsys) == message
    message = refusal(stat.main, ["base", "--attributes", "rules", "--pass", "x > 1"], capsys)
    assert message.startswith("'x > 1': no attribute of rules match; there are rules__length__characters, rules__pii__secret")
    message = refusal(stat.main, ["base", "--attributes", "rules", "--pass", "x"], capsys)
    assert message == "'x' is no test; write NAME >= NUMBER, with one of >=, <=, >, <, ==, !="


def test_a_dataset_without_stages_is_counted(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.rmtree("base/stages")
    values = json.loads(told(capsys, stat.main, "base", "--json"))
    assert {source: row["documents"] for source, row in values["documents"].items()} == {"web": 30, "books": 12}


def test_quantiles_are_within_one_percent_and_counts_exact() -> None:
    rng = random.Random(1)
    numbers = [rng.lognormvariate(0, 6) * rng.choice((1, -1)) for _ in range(20_000)] + [0.0] * 500
    sketch = Sketch()
    for number in numbers:
        sketch.add(number)
    ordered = sorted(numbers)
    assert (sketch.count, sketch.low, sketch.high) == (len(numbers), ordered[0], ordered[-1])
    assert len(sketch.buckets) < 7000
    for share in (0.01, 0.25, 0.48, 0.5, 0.75, 0.99):
        exact = ordered[int(share * (len(numbers) - 1))]
        assert sketch.quantile(share) == pytest.approx(exact, rel=0.0101)
    assert sum(n for _, _, n in sketch.histogram()) == len(numbers)


def test_a_sketch_of_nothing_can_be_told() -> None:
    told = Sketch().describe()
    assert (told["count"], told["mean"], told["quantiles"]["0.5"]) == (0, 0.0, 0.0)  # type: ignore[index]
    json.dumps(told, allow_nan=False)
