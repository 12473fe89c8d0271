"""Attributes that rules name must be there; presets and configs are checked before anything is written; every message."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.mix.command import main
from data_tools.mix.expression import read_expression
from data_tools.mix.plan import read_preset
from data_tools.tag import c4, code_words, fineweb, gopher, length, repetition
from data_tools.tag.config import TagConfig
from data_tools.tag.pii import PiiTagger
from data_tools.tag.secrets import SecretsTagger
from olmo_train.errors import ConfigError, ShardError
from olmo_train.schema import CONFIG_DIR
from tests.data_tools.mix.corpus import Values, documents_of, records_of, run, write_dataset
from tests.data_tools.texts import refusal, write_lines


def dataset(tmp_path: Path, rows: dict[str, list[Values]], name: str = "in") -> Path:
    n = max(map(len, rows.values()))
    documents = [{"id": f"d{i}", "text": "some text", "source": "s"} for i in range(n)]
    return write_dataset(tmp_path / name, {"a.jsonl": documents}, {folder: {"a.jsonl": each} for folder, each in rows.items()})


def source_of(folder: Path, *attributes: str, **values: Any) -> Values:
    return {"documents": [str(folder)], "attributes": list(attributes), **values}


def test_an_attribute_that_no_line_has_fails_before_anything_is_written(tmp_path: Path) -> None:
    """Dolma keeps every document then, and exits with 0."""
    rows: list[Values] = [{"exp__gopher__word_count": [[0, 1, 5]], "exp__gopher__symbols": []} for _ in range(300)]
    rows[250]["exp__rare__thing"] = [[0, 1, 1]]
    folder = dataset(tmp_path, {"exp": rows})
    source = source_of(folder, "exp", drop={"a": "gopher__wordcount < 50"}, redact={"r": {"spans": "exp__gopher__symbol"}})
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "out", {"w": source})
    assert caught.value.problems == [
        "sources.w: attribute gopher__wordcount stands in no line of attributes/exp (did you mean gopher__word_count?)",
        "sources.w: attribute exp__gopher__symbol stands in no line of attributes/exp (did you mean exp__gopher__symbols?)",
    ]
    assert not (tmp_path / "out/documents").exists()
    with pytest.raises(ConfigError, match="attribute zzz__q stands in no line of attributes/exp; there are those of exp__gopher"):
        run(tmp_path / "other", {"w": source_of(folder, "exp", drop={"a": "zzz__q > 1"})})
    run(tmp_path / "rare", {"w": source_of(folder, "exp", drop={"a": "rare__thing"})})
    assert [line["id"] for line in records_of(tmp_path / "rare", "dropped")] == ["d250"]


def test_attributes_without_any_name_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="attribute a__b stands in no line of attributes/exp; there are none at all"):
        run(tmp_path / "out", {"w": source_of(dataset(tmp_path, {"exp": [{}]}), "exp", drop={"a": "a__b > 1"})})


def test_a_short_name_must_fit_one_attribute(tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"one": [{"one__tag__x": [[0, 1, 1]]}], "two": [{"two__tag__x": [[0, 1, 0]]}]})
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "both", {"w": source_of(folder, "one", "two", drop={"a": "tag__x > 0"})})
    assert str(caught.value) == (
        "sources.w: attribute tag__x may be any of one__tag__x (attributes/one), two__tag__x (attributes/two); write the one that is "
        "meant in full, and take its folder alone"
    )
    run(tmp_path / "full", {"w": source_of(folder, "one", "two", drop={"a": "two__tag__x > 0", "b": "one__tag__x > 1"})})
    assert len(documents_of(tmp_path / "full")) == 1
    run(tmp_path / "same", {"w": source_of(folder, "one", drop={"a": "one__tag__x > 0 and tag__x > 0"})})
    assert documents_of(tmp_path / "same") == []


@pytest.mark.parametrize("place", ["attributes/ours/stage.json", "stages/attributes-ours/stage.json"])
def test_names_that_our_own_stages_may_give_need_not_stand_in_the_data(tmp_path: Path, place: str) -> None:
    folder = dataset(tmp_path, {"ours": [{}, {}]})
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ["ours__document__duplicate", "ours__tag__x"]
    path.write_text(json.dumps({"settings": {"name": "ours", "attributes": names}}))
    run(tmp_path / "out", {"w": source_of(folder, "ours", drop={"a": "document__duplicate"})})
    assert len(documents_of(tmp_path / "out")) == 2
    with pytest.raises(
        ConfigError, match=r"attribute document__duplicates stands in no line .*did you mean document__duplicate\?"
    ):
        run(tmp_path / "typo", {"w": source_of(folder, "ours", drop={"a": "document__duplicates"})})


def test_a_stage_over_several_datasets_keeps_its_names_in_the_first(tmp_path: Path) -> None:
    first, second = (dataset(tmp_path, {"ours": [{}]}, name) for name in ("a", "b"))
    stage = {"settings": {"name": "ours", "attributes": ["ours__tag__x"]}, "inputs": {str(second / "documents/a.jsonl"): 1}}
    path = first / "stages/attributes-ours/stage.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(stage))
    rules = {"drop": {"x": "tag__x"}}
    run(tmp_path / "out", {"v": source_of(second, "ours", **rules), "w": source_of(first, "ours")})
    assert len(documents_of(tmp_path / "out")) == 2
    path.write_text(json.dumps({**stage, "inputs": {}}))
    with pytest.raises(ConfigError, match="attribute tag__x stands in no line"):
        run(tmp_path / "no", {"v": source_of(second, "ours", **rules), "w": source_of(first, "ours")})


def test_missing_attributes_are_told_before_anything_is_written(tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"gopher": [{"gopher__a__b": []}]})
    write_lines(folder / "documents/b.jsonl", [])
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "out", {"w": source_of(folder, "gopher", "gofer"), "v": source_of(folder)})
    assert caught.value.problems == [
        f"sources.w.attributes: {folder} has no folder attributes/gofer (did you mean gopher?); there are gopher",
        f"sources.w.attributes: {folder}/attributes/gopher/b.jsonl is missing; attributes are needed for every file of documents",
        f"sources.v: {folder}/documents/a.jsonl belongs to sources.w as well; take it once, and repeat it",
        f"sources.v: {folder}/documents/b.jsonl belongs to sources.w as well; take it once, and repeat it",
    ]
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"a.jsonl lies in output=.*; give another folder"):
        run(folder, {"w": source_of(folder)})
    with pytest.raises(ShardError, match=r"^sources\.w\.documents: nothing matches .*nowhere"):
        run(tmp_path / "out", {"w": source_of(tmp_path / "nowhere")})


def test_everything_wrong_with_a_config_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out/documents").mkdir(parents=True)
    words = {
        "sources.web.documents": "[]", "sources.web.repeat": "0", "sources.web.min_text_length": "-1",
        "sources.web.max_mb": "0", "sources.web.max_tokens": "5", "sources.web.rename": "../up", "sources.web.filters": "[fineweb2]",
        "sources.code.documents": "[y]", "sources.code.weight": "0", "sources.code.drop": '{x: "a__b <", length: "1 > 0"}',
        "sources.code.keep": '{length: "1 < 2", sampled: "1 < 2"}', "sources.code.redact": '{r: {spans: "count(a__b)", max_score: 0.1}}',
        "sources.math.documents": "[z]", "sources.math.weight": "1", "sources.math.repeat": "2", "sources.math.tokens": "length__tokens",
        "total_tokens": "5", "total_mb": "0", "max_repeat": "0.5", "max_file_mb": "0", "processes": "0",
        "output": str(tmp_path / "out"),
    }  # fmt: skip
    told = refusal(main, [f"{name}={value}" for name, value in words.items()], capsys)
    for problem in (
        "processes=0 must be positive; null takes one per core",
        "max_file_mb=0 must be positive",
        "max_repeat=0.5 must be at least 1",
        "total_mb and total_tokens are given; a mixture has one total",
        "total_mb=0.0 must be positive",
        "sources.web.documents is empty; give files, folders or globs of Dolma documents",
        "sources.web.min_text_length=-1 must not be negative",
        "sources.web.repeat=0.0 is not in (0, 1000]; leave a source out instead of repeating it 0 times",
        "sources.web.max_mb=0.0 must be positive; null sets no limit",
        "sources.web.max_tokens needs sources.web.tokens, an attribute that has their number, or tokenizer, which counts them",
        "sources.web.weight is missing; total_mb is shared out by the sources' weights",
        "sources.web.rename='../up' cannot name a folder; take words with slashes between",
        "sources.web.filters: configs/filter/ has no 'fineweb2' (did you mean fineweb?); options: dclm_baseline, dolma15_c4, ",
        "sources.code.weight=0.0 must be positive; leave the source out",
        "sources.code.redact.r: max_score=0.1 is less than min_score=0.5",
        "sources.code.drop.x='a__b <': is no expression: invalid syntax",
        "sources.code: length is the name of another rule or of a step; call one of them otherwise",
        "sources.code: sampled is the name of another rule or of a step; call one of them otherwise",
        "sources.code.redact.r='count(a__b)' must be the name of an attribute, not an expression",
        "sources.math: repeat=2.0 and weight=1.0 both say how often a document is taken; give one",
        "sources.math.attributes is empty, but length__tokens is named; give the folder below attributes/ that has it",
        f"output={tmp_path / 'out'} has documents/ already, which no mix wrote; give another folder, or remove it",
    ):
        assert problem in told
    told = refusal(main, [f"output={tmp_path / 'new'}", "tokenizer=nowhere.json"], capsys)
    assert "sources is empty; give sources.<name>.documents=[...]" in told
    assert "tokenizer=nowhere.json is not a file; give a tokenizer.json" in told
    config = tmp_path / "c.yaml"
    config.write_text(f"output: {tmp_path / 'new'}\nsources: {{a/b: {{documents: [x], weight: 2}}}}\n")
    told = refusal(main, [f"config={config}"], capsys)
    assert "sources: 'a/b' cannot name a folder; take letters, digits, . _ and -, a letter or digit first" in told
    assert "sources.a/b.weight=2.0 needs a total: give total_tokens, total_mb or total_documents" in told


# ---- presets -----------------------------------------------------------------------------------------------------------------

PRESETS = sorted(path.stem for path in (CONFIG_DIR / "filter").glob("*.yaml"))
TYPES = {
    "gopher": gopher.TYPES, "c4": c4.TYPES, "fineweb": fineweb.TYPES, "code_words": code_words.TYPES, "repetition": repetition.TYPES,
    "length": length.TYPES, "pii": PiiTagger.types, "secrets": SecretsTagger.types,
    "language": TagConfig(name="x").models.language.languages,
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_attributes_that_our_taggers_give(name: str) -> None:
    preset = read_preset(name)
    texts = [*preset.drop.values(), *preset.keep.values()]
    words = [word for text in texts for word in read_expression(text).attributes] + [
        rule.spans for rule in preset.redact.values()
    ]
    assert words
    for word in words:
        tagger, kind = word.split("__")
        assert kind in TYPES[tagger], word
    rows = (CONFIG_DIR / "filter" / f"{name}.yaml").read_text().splitlines()
    assert all("#" in row for row in rows if row.startswith("  ") and not row.startswith("    ")), "each rule says its source"


def test_presets_are_chosen_for_all_sources_and_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = {"x__repetition__doc_max_score_repetition": 40, "x__code_words__stars": 1}
    first = {name: [[0, 9, value]] for name, value in score.items()}
    rest = {"x__code_words__fraction_of_most_common_word": [[0, 9, 0.1]], "x__code_words__fraction_of_two_most_common_words": []}
    rows: list[Values] = [
        {**first, **rest},
        {**rest, "x__code_words__stars": [[0, 9, 1]]},
        {**rest, "x__code_words__stars": [[0, 9, 5]]},
    ]
    for name in ("web", "code"):
        dataset(tmp_path, {"x": rows}, name)
    words = [
        "sources.web.repeat=1",
        "filter=olmoe_mix",
        f"output={tmp_path / 'out'}",
        "sources.code.filters=[olmoe_mix_code]",
        "processes=1",
    ]
    words += [
        f"sources.{name}.{field}" for name in ("web", "code") for field in (f"documents=[{tmp_path / name}]", "attributes=[x]")
    ]
    main([*words, 'sources.code.drop.few_stars="code_words__stars < 4 and length() > 3"', 'sources.code.drop.none=""'])
    reasons = {(line["path"].split("/")[-3], line["id"]): line["reason"] for line in records_of(tmp_path / "out", "dropped")}
    assert reasons == {("web", "d0"): "repeated_ngrams", ("code", "d0"): "repeated_ngrams", ("code", "d1"): "few_stars"}
    printed = capsys.readouterr().out
    assert printed.splitlines() == [
        f"{tmp_path / 'out'}: 3 of 6 documents",
        "source  step             documents  MB of text  tokens     left",
        "web     read                     3         0.0       -  100.0 %",
        "        repeated_ngrams          2         0.0       -   66.7 %",
        "        written                  2         0.0       -   66.7 %",
        "code    read                     3         0.0       -  100.0 %",
        "        repeated_ngrams          2         0.0       -   66.7 %",
        "        few_stars                1         0.0       -   33.3 %",
        "        written                  1         0.0       -   33.3 %",
        "all     written                  3         0.0       -   50.0 %",
    ]
    settings = json.loads((tmp_path / "out/stages/mix/stage.json").read_text())["settings"]["sources"]["code"]
    assert [rule["text"] for rule in settings["rules"]][:2] == [
        "repetition__doc_max_score_repetition >= 32", "code_words__stars < 4 and length() > 3",
    ]  # fmt: skip
    with pytest.raises(ShardError, match="was begun by another plan"):
        main([*words, 'sources.code.drop.few_stars="code_words__stars < 5"'])
