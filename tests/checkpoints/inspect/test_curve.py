"""Curves over a run: the numbers against the files they come from, what is left out, and every message."""

import json
import math
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from checkpoints.inspect.curve import MEASURES, main, parse
from checkpoints.inspect.curve_tables import terminal_tables, wrap_columns
from checkpoints.inspect.curves_file import FORMAT, document_bytes, read_document, thin, training_columns
from checkpoints.inspect.figures import draw_figures
from checkpoints.inspect.page_view import MAX_FULL, MAX_SLIM, View, page_data, score
from checkpoints.publish.assemble import AssembleOptions, assemble
from checkpoints.release import read_release_folder, revision_name
from checkpoints.run_files import Evaluation, add_evaluation, read_evaluations
from olmo_train.errors import CheckpointError, ConfigError
from tests.checkpoints.inspect.curves import TEXTS, make_curves, read_curves
from tests.runs import metrics, run_training, small
from tests.texts import VOCAB, TextCorpus

STEPS = [0, 1, 2, 4, 5, 10]
FIGURES = ["coactivation", "load", "loss", "norms", "saturation", "sources", "texts", "tokens", "training"]


def curve(*words: object) -> None:
    main([str(word) for word in words])


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


def test_the_command_writes_numbers_figures_and_the_report(run: Path) -> None:
    folder = make_curves(run)
    assert sorted(path.stem for path in folder.glob("*.png")) == FIGURES
    for path in folder.glob("*.png"):
        width, height = png_size(path)
        assert min(width / 1000, height / 400) >= 1, path
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    document = read_document(folder / "curves.json")
    assert document["asked"] == list(MEASURES)
    assert document["left_out"] == {}
    assert [checkpoint["step"] for checkpoint in document["series"]["checkpoints"]] == STEPS


def test_every_measure_says_its_unit_and_where_it_is_defined(run: Path) -> None:
    definitions = read_curves(run)["definitions"]
    assert {"norms", "saturation", "coactivation", "source_specialisation", "token_specialisation", "text"} <= set(definitions)
    assert all(set(entry) == {"unit", "is", "source"} and all(entry.values()) for entry in definitions.values())


def test_norms_are_those_of_the_weights(run: Path) -> None:
    files = sorted((run / "steps" / "step00000005").glob("model-*.safetensors"))
    parts = [load_file(path) for path in files]
    squares = sum(float((part["embedding.weight"].double() ** 2).sum()) for part in parts if "embedding.weight" in part)
    norms = read_curves(run)["series"]["checkpoints"][STEPS.index(5)]["norms"]["by_kind"]
    assert math.isclose(norms["embedding"]["norm"], math.sqrt(squares), rel_tol=1e-6)


def test_training_and_evaluations_are_those_of_the_run(run: Path) -> None:
    document, lines = read_curves(run), [line for line in metrics(run) if line["step"] > 0]
    for name in ("step", "tokens", "loss", "grad_norm", "lr"):
        assert document["training"][name] == [line[name] for line in lines]
    found = [(e["step"], e["suite"], e["label"], e["metrics"]) for e in document["evaluations"]]
    assert found == [(e.step, e.suite, e.label, e.metrics) for e in read_evaluations(run)]
    assert found


def test_the_facts_of_the_run_are_there(run: Path) -> None:
    document = read_curves(run)
    facts, provenance = document["run"], json.loads((run / "provenance.json").read_text())
    assert facts["name"] == "first"
    assert facts["parameters"]["total"] > facts["parameters"]["active"] > 0
    assert facts["starts"][0]["git"] == provenance["starts"][0]["git"]
    assert [source["name"] for source in facts["sources"]] == ["animals", "places"]
    size = sum(path.stat().st_size for path in (run / "steps" / "step00000010").iterdir())
    assert document["sizes"][-1] == size


def test_the_last_checkpoint_is_saturated_and_its_tokens_have_texts(run: Path) -> None:
    document = read_curves(run)
    layers = document["series"]["checkpoints"][-1]["routing"]["layers"]
    assert [layer["saturation"] for layer in layers] == [{"top_k": 1.0, "top_1": 1.0}] * 2
    ids = {str(token["id"]) for layer in layers for tokens in layer["vocabulary"]["input"]["tokens"] for token in tokens}
    assert ids
    assert ids <= set(document["tokens"])
    assert any(text.strip() in ("the", "a", "cat", "then") for text in document["tokens"].values())


def test_only_the_steps_and_measures_asked_for_are_taken(copy: Path, tmp_path: Path) -> None:
    curve(copy, "--steps", "0,10", "--measures", "norms,evaluations", "--output", tmp_path / "out")
    document = read_document(tmp_path / "out" / "curves.json")
    checkpoints = document["series"]["checkpoints"]
    assert [checkpoint["step"] for checkpoint in checkpoints] == [0, 10]
    assert all(checkpoint["routing"] is None and checkpoint["heldout"] is None for checkpoint in checkpoints)
    assert document["training"] is None
    assert document["evaluations"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == ["loss", "norms"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not measured: --measures asked for none of saturation" in page
    assert "did not ask for text" in page


def test_evaluations_made_later_are_drawn(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, value in ((0, 0.25), (10, 0.5)):
        add_evaluation(copy, Evaluation(step, "lm_eval", "arc_easy", {"acc": value, "acc_norm": value / 2}))
    curve(copy, "--steps", "0,10", "--measures", "evaluations", "--output", tmp_path)
    assert png_size(tmp_path / "evaluations.png")
    assert re.search(r"10 +arc_easy +lm_eval +acc_norm +0\.2500", capsys.readouterr().out)
    page = (tmp_path / "report.html").read_text()
    assert "arc_easy" in page
    assert "arc_easy 0.250" in page


def test_a_dense_model_and_one_checkpoint_leave_sections_out_and_say_why(corpus: TextCorpus, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    words = ["model=tiny_dense", "model.d_ff=48", f"model.vocab_size={VOCAB}", "max_tokens=512", "optim.schedule.warmup_tokens=0"]
    overrides = [word for word in small(corpus.shards, folder, *words) if not word.startswith("model.moe.")]
    run_training(overrides)
    curve(folder, "--tokens-per-source", 64)
    document = read_document(folder / "inspect" / "curves.json")
    dense = "This model is dense: it has no routers and no experts."
    assert document["left_out"]["saturation"] == dense
    assert document["left_out"]["routing"] == dense
    assert document["left_out"]["text"] == "No text was given: --text or --text-file names one."
    page = (folder / "inspect" / "report.html").read_text()
    assert dense in page
    assert "A dense language model" in page
    assert "there is only one checkpoint" in page
    assert "No task was evaluated" in page
    assert 'id="saturation"' not in page
    with pytest.raises(ConfigError, match="--measures=coactivation: This model is dense"):
        curve(folder, "--measures", "coactivation")


def test_without_the_shards_the_rest_is_measured(copy: Path, tmp_path: Path) -> None:
    config = (copy / "config.yaml").read_text()
    for path in (copy / "config.yaml", *copy.glob("steps/*/config.yaml")):
        path.write_text(re.sub(r"(\n +path: ).*", r"\1/nowhere/at/all", config))
    curve(copy, "--steps", "10", "--output", tmp_path)
    left_out = read_document(tmp_path / "curves.json")["left_out"]
    assert left_out["heldout"].startswith("Held-out tokens could not be read:")
    assert "nowhere" in left_out["heldout"]
    assert "saturation" in left_out
    assert "Held-out tokens could not be read" in (tmp_path / "report.html").read_text()
    with pytest.raises(ConfigError, match="nowhere"):
        curve(copy, "--tokens-per-source", "128", "--output", tmp_path)


def test_releases_show_what_their_manifests_say(copy: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    add_evaluation(copy, Evaluation(5, "lm_eval", "arc_easy", {"acc": 0.25}))
    for step in (5, 10):
        options = AssembleOptions(1, None, False, "apache-2.0", None, None)
        assemble(copy, step, tmp_path / "store" / revision_name(1, step, step * 256), options)
    shards = ("--shards", corpus.shards, "--tokens-per-source", 64)
    curve(tmp_path / "store", *shards, "--output", tmp_path / "out")
    document = read_document(tmp_path / "out" / "curves.json")
    releases = [read_release_folder(folder) for folder in sorted((tmp_path / "store").iterdir(), key=lambda f: len(f.name))]
    assert [c["digest"] for c in document["series"]["checkpoints"]] == [release.weights_sha256 for release in releases]
    found = {(e["step"], e["suite"], e["label"]): e["metrics"] for e in document["evaluations"]}
    assert found[5, "lm_eval", "arc_easy"] == {"acc": 0.25}
    assert document["training"]["step"] == list(range(1, 11))
    assert document["run"]["name"] == "first"
    assert "arc_easy 0.250" in (tmp_path / "out" / "report.html").read_text()


def test_one_checkpoint_of_a_run_can_be_shown(run: Path, tmp_path: Path) -> None:
    curve(run / "steps" / "step00000010", "--tokens-per-source", 256, "--output", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "there is only one" in page
    assert "One checkpoint is shown here." in page
    assert not (tmp_path / "saturation.png").exists()


@pytest.mark.parametrize("width", [40, 72, 200])
def test_tables_fit_the_terminal(run: Path, width: int) -> None:
    lines = terminal_tables(View(read_curves(run)), width)
    tables = [line for line in lines if not line.endswith(":")]
    assert max(map(len, tables)) <= max(width, 48), max(tables, key=len)
    assert {"layer 0", "layer 1"} <= set(re.findall(r"layer \d", "\n".join(lines)))


def test_columns_that_do_not_fit_come_below_with_the_first_again() -> None:
    lines = wrap_columns(["step", "one", "two", "three"], [["0", "1", "2", "3"]], 14)
    assert lines == ["step  one  two", "0       1    2", "", "step  three", "0         3"]


def test_no_name_can_steer_the_terminal(run: Path) -> None:
    document = read_curves(run)
    for entry in document["evaluations"]:
        entry["label"] += "\x1b[2J"
    document["series"]["checkpoints"][-1]["texts"][0]["text"] = "\x1b]0;owned\x07"
    document["left_out"]["loss"] = "\x9b31m"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\n".join(terminal_tables(View(document), 80)))


def test_figures_are_the_same_bytes_each_time(run: Path) -> None:
    folder = make_curves(run)
    drawn = draw_figures(View(read_curves(run)))
    assert drawn == {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_thinning_keeps_every_spike() -> None:
    values: list[float | None] = list(np.sin(np.arange(100_000) / 3000))
    values[54_321], values[77_777], values[5] = 40.0, -40.0, None
    kept = thin(values, 600)
    assert {0, 54_321, 77_777, 99_999} <= set(kept)
    assert len(kept) <= 602
    assert kept == sorted(kept)
    assert thin([None] * 10_000, 600)[-1] == 9_999
    assert thin([1.0, 2.0], 600) == [0, 1]


def test_columns_of_training_leave_out_what_no_line_has() -> None:
    lines: list[dict[str, Any]] = [{"step": 0, "tokens": 0}, {"step": 1, "tokens": 8, "loss": None, "lr": 0.1}]
    assert training_columns(lines) == {"step": [1], "tokens": [8], "lr": [0.1]}
    assert training_columns(lines[:1]) is None


def test_a_run_that_diverged_is_shown_whatever_its_names(run: Path) -> None:
    document = read_curves(run)
    for entry in document["evaluations"]:
        entry["label"] += " $x_{$ \x00\n\u4e2d"
    document["training"]["loss"][3] = math.nan
    last = document["series"]["checkpoints"][-1]
    last["heldout"]["all"]["loss"] = math.inf
    last["texts"][0]["log_probs"][0] = -math.inf
    last["norms"]["by_kind"]["embedding"]["norm"] = math.nan
    again = json.loads(document_bytes(document))
    assert again["series"]["checkpoints"][-1]["texts"][0]["log_probs"][0] is None
    assert draw_figures(View(again))
    assert terminal_tables(View(again), 80)


def test_the_page_carries_every_number_of_some_checkpoints_only(run: Path) -> None:
    document = read_curves(run)
    document["series"]["checkpoints"] *= 20
    view = View(document)
    carried = page_data(view)["series"]["checkpoints"]
    assert len(view.full) == MAX_FULL
    assert view.full[0] == 0
    assert view.full[-1] == len(carried) - 1
    layers = [c["routing"]["layers"][1] if c["routing"] else None for c in carried]
    assert [i for i, layer in enumerate(layers) if layer and "load" in layer["balance"]] == view.full
    assert MAX_FULL < len([layer for layer in layers if layer and layer["balance"]["max_load"]]) <= MAX_FULL + MAX_SLIM
    assert all(c["norms"]["by_kind"] and c["heldout"] for c in carried)


def test_a_task_is_told_by_its_best_known_metric() -> None:
    assert score({"bits_per_byte": 1.0, "acc": 0.5, "zzz": 2.0}) == ("acc", 0.5)
    assert score({"zzz": 2.0, "mine": 1.0}) == ("mine", 1.0)
    assert score({}) == ("", None)


def test_a_text_can_come_from_a_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a\nb", encoding="utf-8")
    asked = parse([str(run), "--text", TEXTS[0], "--text-file", str(tmp_path / "text.txt")])
    assert [text.text for text in asked.texts] == [TEXTS[0], "a\nb"]
    assert asked.output == run / "inspect"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--measures", "norms,nroms"], "--measures=nroms: no such measure; there are norms, heldout, saturation,"),
        (["--measures", "text"], "--measures=text needs --text or --text-file"),
        (["--steps", "1,x"], "--steps=1,x must be steps with commas between them, e.g. --steps 0,100,1000"),
        (["--steps", "3"], "--steps=3 not in .*; there are 0, 1, 2, 4, 5, 10"),
        (["--text", ""], "--text='' has no tokens; give some text"),
        (["--text-file", "no/such/file"], "--text-file=no/such/file: No such file or directory; give a text file in UTF-8"),
        (["--tokens-per-source", "0"], "--tokens-per-source=0 must be at least 1"),
        (["--tokens-per-source", "3"], "must be at least one instance of 16 tokens"),
        (["--output", __file__], "--output=.*test_curve.py is a file; give the name of a folder"),
        (["--output", "/dev/null/x"], "--output=/dev/null/x: Not a directory; give a folder that can be written"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        curve(run, *words)
    assert not (run / "inspect").exists()


def test_a_text_that_is_not_utf8_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8; give a text file in UTF-8"):
        curve(run, "--text-file", tmp_path / "text")


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        curve(tmp_path, "--steps", "x", "--tokens-per-source", "-1", "--measures", "loss,x")
    assert len(error.value.problems) == 4
    assert "so say where the files go: --output FOLDER" in str(error.value)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(run: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:  # root may write anywhere but into a file
        target = tmp_path / "file"
        target.touch()
        target /= "below"
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        target = tmp_path / "closed" / "below"
    with pytest.raises(ConfigError, match="give a folder that can be written"):
        curve(run, "--output", target)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "x", "version": 1}', f'{{"format": "{FORMAT}", "version": 99}}'])
def test_another_file_is_no_curves(tmp_path: Path, content: str) -> None:
    (tmp_path / "curves.json").write_text(content)
    with pytest.raises(CheckpointError, match="`olmo checkpoints curve` writes it anew"):
        read_document(tmp_path / "curves.json")


def test_the_results_replace_those_before_and_leave_nothing_half(run: Path, tmp_path: Path) -> None:
    folder = make_curves(run)
    out = Path(shutil.copytree(folder, tmp_path / "out"))
    (out / "report.html").write_text("old")
    curve(folder.parent, "--steps", "10", "--measures", "norms,loss", "--output", out)
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
