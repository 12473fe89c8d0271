"""A card says what the run's files say, whatever names they have in them, and its commands work."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from checkpoints.publish.facts import effective_starts
from checkpoints.publish.markdown import code, escape, fenced, one_line, table, wrap
from checkpoints.publish.plots import MAX_POINTS, History, draw_plots, short_count, thin
from checkpoints.release import Release, read_release_folder
from checkpoints.run_files import Evaluation, add_evaluation
from data_tools.inspect.run_order import open_run
from olmo_train.config.train import TrainConfig
from olmo_train.model.size import count_params, flops_per_token
from olmo_train.schema import read_yaml, to_plain, to_yaml
from tests.checkpoints.publish.making import make, rewrite
from tests.runs import run_training, small
from tests.texts import VOCAB, TextCorpus

EVIL = "a|b `c` <script>x()</script> [l](javascript:1) **b** $\\frac{ ![i](http://e) @all #1 \U0001f600\u202e\nlicense: evil\n---\n# h"
"""A name that is markup, YAML, mathematics and a line break."""


@pytest.fixture(scope="module")
def release(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases") / "ten"
    make(run, 10, folder)
    return folder


@pytest.fixture(scope="module")
def mixed(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 steps on two weighted sources, one of them seen several times."""
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    parts = ["animals: {path: '%s', select: animals, weight: 3}", "demo: {path: '%s', select: places, weight: 1}"]
    sources = f"data.sources={{{', '.join(parts)}}}" % (corpus.shards, corpus.shards)
    words = [f"model.vocab_size={VOCAB}", "data.global_batch_size=8192", "max_tokens=24576", "data.micro_batch_size=8192"]
    words = [word for word in small(corpus.shards, folder, *words) if not word.startswith("data.sources.")]
    run_training([*words, sources])
    return folder


@pytest.fixture(scope="module")
def dense(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 steps of a dense model with windows, by another recipe."""
    folder = tmp_path_factory.mktemp("runs") / "dense"
    words = [
        "model=tiny_dense", f"model.vocab_size={VOCAB}", "model.padded_vocab_size=320", "model.n_kv_heads=2", "model.norm_order=post",
        "model.qk_norm=full", "model.sliding_window=8", "model.full_attention_every=2", "model.z_loss_weight=1e-5",
        "max_tokens=512", "optim=muon", "optim.schedule.kind=wsd", "optim.schedule.warmup_tokens=0",
        "optim.schedule.decay_tokens=256", "optim.max_grad_norm=null", "data.document_masking=true",
    ]  # fmt: skip
    run_training([word for word in small(corpus.shards, folder, *words) if not word.startswith("model.moe.")])
    return folder


def front(folder: Path) -> Any:
    """The front matter of a card."""
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def cells(folder: Path, name: str) -> list[str]:
    """The cells of the first row of a table of the card whose first cell is `name`."""
    return next(row for row in rows(folder) if row[0] == name)


def rows(folder: Path) -> list[list[str]]:
    """Every row of every table; only a bar that is not escaped parts cells, in code too."""
    lines = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


# ---- front matter -----------------------------------------------------------------------------------------------------


def test_the_front_matter_is_what_the_hub_wants(release: Path) -> None:
    values = front(release)
    assert list(values) == ["license", "library_name", "pipeline_tag", "tags", "model-index"]
    assert (values["license"], values["library_name"]) == ("apache-2.0", "transformers")
    assert values["tags"] == ["pretraining", "base-model", "olmoe", "mixture-of-experts"]
    card = ModelCard.load(release / "README.md")
    found = {(r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    expected = {
        (row["label"], name): row["metrics"][name]
        for row in read_release_folder(release).evaluations
        for name in ("loss", "bits_per_byte")
    }
    assert found == expected
    assert card.data.model_name == "first"


def test_a_step_without_evaluations_has_no_model_index(run: Path, tmp_path: Path) -> None:
    make(run, 4, tmp_path / "out")
    assert "model-index" not in front(tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "## Evaluations\n\nNone at this step." in text
    assert "- It was not evaluated at this step." in text
    assert "The run goes on to step 10" in text


# ---- text -------------------------------------------------------------------------------------------------------------


def test_the_tables_have_the_numbers_of_the_run(run: Path, release: Path) -> None:
    config, manifest = read_yaml(run / "config.yaml", TrainConfig), read_release_folder(release)
    counts = count_params(config.model)
    assert cells(release, "Parameters") == ["Parameters", f"{counts.total:,}"]
    assert cells(release, "Parameters used by a token")[1] == f"{counts.active:,}"
    assert cells(release, "Training FLOPs per token")[1] == f"{flops_per_token(config.model, 16):,.0f}"
    assert cells(release, "Feed-forward")[1] == "4 experts of width 16 (SwiGLU), 2 for each token"
    assert cells(release, "Steps taken")[1] == "10 of 10"
    assert cells(release, "Tokens seen")[1] == "2,560"
    assert cells(release, "Training loss at this step")[1] == f"{manifest.loss:.4f} nats per token"
    assert cells(release, "Schedule")[1] == "peak 0.01; cosine; warm-up over 512 tokens; to 0.1 of the peak at 2,560 tokens"
    assert cells(release, "Weights")[1] == f"`{manifest.weights_sha256}`"
    loss = next(row["metrics"]["loss"] for row in manifest.evaluations if row["label"] == "animals")
    assert ["`heldout`", "`animals`", "`loss` (cross entropy, nats per token)", f"{loss:.4f}", "960 tokens"] in rows(release)
    (start,) = json.loads((run / "provenance.json").read_text())["starts"]
    assert cells(release, "1 to 10")[2] == f"`2 x {start['device']}`"
    assert f"torch {start['versions']['torch']}" in cells(release, "1 to 10")[3]


def test_a_dense_model_of_another_recipe_is_told(dense: Path, tmp_path: Path) -> None:
    make(dense, 2, tmp_path / "out")
    told = {row[0]: row[1] for row in rows(tmp_path / "out") if len(row) == 2}
    config = read_yaml(dense / "config.yaml", TrainConfig)
    assert told["Class in transformers"] == "`Olmo3ForCausalLM`"
    assert told["Parameters"] == told["Parameters used by a token"]
    assert told["Attention heads"] == "4 of width 8, 2 for keys and values"
    assert told["Feed-forward"] == f"SwiGLU of width {config.model.d_ff}"
    assert told["Vocabulary"] == "300 ids, 320 rows"
    assert told["Attention window"] == "8 tokens; all tokens before on every 2nd layer"
    assert told["Optimizer"].startswith("Muon for the matrices of the blocks, momentum 0.95; for the rest AdamW, beta 0.9")
    assert told["Schedule"].endswith("; wsd; warm-up over 0 tokens; the last 256 tokens to 0.1 of the peak")
    assert told["Loss beside cross entropy"] == "output z-loss 1e-05"
    assert (told["Gradient clipping"], told["Attention across documents"]) == ("none", "no")
    text = (tmp_path / "out/README.md").read_text()
    assert text.split("# dense, step 2\n\n")[1].startswith("A dense language model with ")
    assert front(tmp_path / "out")["tags"] == ["pretraining", "base-model", "olmo3"]
    assert not (tmp_path / "out/plots/experts.png").exists()


def test_a_mixture_is_told_source_by_source(mixed: Path, tmp_path: Path) -> None:
    make(mixed, 3, tmp_path / "out")
    _, order = open_run(str(mixed))
    drawn = [instance for step in (1, 2, 3) for instance in order.batch(step)]
    for name, weight, share in (("animals", "3", "75.00%"), ("demo", "1", "25.00%")):
        seen, size = sum(instance.source == name for instance in drawn), order.instances_per_epoch()[name]
        row = cells(tmp_path / "out", f"`{name}`")
        assert row[5:] == [weight, share, f"{seen / size:.4f}"]
        source = next(source for source in order.sources if source.name == name)
        assert row[1] == f"{sum(file.entry.documents for file in source.files):,}"
    assert float(cells(tmp_path / "out", "`animals`")[7]) > 1
    assert set((tmp_path / "out/training/data").iterdir()) == {
        tmp_path / "out/training/data" / name for name in ("animals", "demo")
    }


def test_draws_are_counted_over_many_blocks(mixed: Path) -> None:
    _, order = open_run(str(mixed))
    for step in (0, 1, 31, 32, 33, 70):  # 512 rows a step, 16,384 positions a block
        counts = dict.fromkeys(order.instances_per_epoch(), 0)
        for before in range(1, step + 1):
            for instance in order.batch(before):
                counts[instance.source] += 1
        assert order.drawn(step) == counts


def test_the_parts_of_a_source_are_told(run: Path, release: Path) -> None:
    whole, parts = cells(release, "`demo`"), [cells(release, f"of it `{name}`") for name in ("animals", "places")]
    for column in range(1, 5):
        assert int(whole[column].replace(",", "")) == sum(int(part[column].replace(",", "")) for part in parts)
    _, order = open_run(str(run))
    assert whole[5:] == ["", "by size", f"{160 / order.instances_per_epoch()['demo']:.4f}"]
    assert parts[0][5:] == ["", "", ""]


def test_uncommitted_changes_are_warned_of(copy: Path, tmp_path: Path) -> None:
    step = copy / "steps/step00000010"
    start = json.loads((step / "provenance.json").read_text())["starts"][0]
    clean, changed = {"commit": "a" * 40, "has_changes": False}, {"commit": "b" * 40, "has_changes": True}
    starts = [start | {"from_step": 0, "git": changed}, start | {"from_step": 4, "git": clean}]
    for number, (chosen, warned) in enumerate([(starts, True), (starts[1:], False), ([start | {"git": None}], True)]):
        rewrite(step, "provenance.json", json.dumps({"starts": chosen}))
        manifest = make(copy, 10, tmp_path / str(number))
        text = (tmp_path / str(number) / "README.md").read_text()
        assert ("**The code is not exactly known.**" in text) == warned
        assert manifest.code == (clean if number < 2 else None)
    assert cells(tmp_path / "0", "1 to 4")[1] == f"`{'b' * 40}` with uncommitted changes"
    assert cells(tmp_path / "0", "5 to 10")[1] == f"`{'a' * 40}`"
    assert cells(tmp_path / "2", "1 to 10")[1] == "not known"


def test_starts_whose_work_was_lost_do_not_count() -> None:
    starts = [{"from_step": step, "n": n} for n, step in enumerate([0, 0, 8, 4, 12, 12])]
    assert [(s.first, s.last, s.facts["n"]) for s in effective_starts(starts, 10)] == [(1, 4, 1), (5, 10, 3)]
    assert [(s.first, s.last, s.facts["n"]) for s in effective_starts(starts, 20)] == [(1, 4, 1), (5, 12, 3), (13, 20, 5)]
    assert [(s.first, s.last, s.facts["n"]) for s in effective_starts(starts[:2], 0)] == [(0, 0, 1)]


def rename(copy: Path) -> None:
    """Give the run, its source, its device and a task names that are markup."""
    step = copy / "steps/step00000010"
    config = to_plain(read_yaml(step / "config.yaml", TrainConfig))
    config["run_name"], config["data"]["sources"] = EVIL, {EVIL: config["data"]["sources"]["demo"]}
    rewrite(step, "config.yaml", to_yaml(config))
    state = json.loads((step / "state.json").read_text())
    state["data"]["order"]["sources"][0]["name"] = EVIL
    rewrite(step, "state.json", json.dumps(state))
    values = json.loads((step / "provenance.json").read_text())
    values["starts"][0] |= {"device": EVIL, "versions": {EVIL: "1"}, "git": {"commit": EVIL, "has_changes": False}}
    rewrite(step, "provenance.json", json.dumps(values))
    add_evaluation(copy, Evaluation(10, EVIL, EVIL, {EVIL: 0.25}))
    for step_number in (5, 10):
        add_evaluation(copy, Evaluation(step_number, "heldout", EVIL, {"loss": 2.0}))


def test_names_that_are_markup_stay_names(copy: Path, tmp_path: Path) -> None:
    rename(copy)
    make(copy, 10, tmp_path / "out")
    values = front(tmp_path / "out")
    assert values["license"] == "apache-2.0"
    assert values["model-index"][0]["name"] == one_line(EVIL)
    assert ModelCard.load(tmp_path / "out/README.md").data.model_name == one_line(EVIL)
    text = (tmp_path / "out/README.md").read_text().split("---\n", 2)[2]
    assert "\u202e" not in text
    assert not any(line.startswith(("license:", "---", "# h")) for line in text.splitlines())
    outside_code = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", re.sub(r"```.*?```", "", text, flags=re.S))
    assert "script" in outside_code  # the title has the name, escaped
    for markup in (r"(?<!\\)<script", r"(?<!\\)\]\(javascript", r"(?<!\\)\*\*b", r"(?<!\\)!\[i", r"(?<!\\)\[i\]", r"(?<!\\)\$"):
        assert re.search(markup, outside_code) is None, markup
    header: list[str] = []
    for row, after in zip(rows(tmp_path / "out"), rows(tmp_path / "out")[1:], strict=False):
        header = row if after[0].startswith("---") else header
        assert len(row) == len(header), row
    folder = (
        "a%7Cb %60c%60 %3Cscript%3Ex%28%29%3C%2Fscript%3E %5Bl%5D%28javascript%3A1%29 %2A%2Ab%2A%2A %24%5Cfrac%7B %21%5Bi%5D"
        "%28http%3A%2F%2Fe%29 %40all %231 %F0%9F%98%80%E2%80%AE%0Alicense%3A evil%0A---%0A%23 h"
    )
    assert [path.name for path in (tmp_path / "out/training/data").iterdir()] == [folder]


def test_code_and_escapes_follow_the_rules_of_markdown() -> None:
    assert code("a") == "`a`"
    assert code("a`b``c") == "```a`b``c```"
    assert code("`a`") == "`` `a` ``"
    assert code("a|b") == "`a\\|b`"
    assert code(" \n\t") == "`(empty)`"
    assert escape("a_b [c](d) <e> `f` |g| &amp; x*y*") == r"a\_b \[c\](d) \<e\> \`f\` \|g\| \&amp; x\*y\*"
    assert one_line("a\x00\u2028b\ud800\u200fc") == "a b c"
    assert table(("a", "b"), [("1", "2")], [1]) == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]
    assert wrap("- " + "word " * 40, "  ")[1].startswith("  word")
    assert fenced("bash", "a\nb") == ["```bash", "a", "b", "```"]


# ---- curves -----------------------------------------------------------------------------------------------------------


def history(n: int) -> History:
    out = History()
    for step in range(n + 1):
        layers = {"load_max_over_mean": [1.0 + step / n, 1.5]} if step % 2 else None
        loss = None if step == 3 else 5.0 - step / n
        out.add(
            {
                "step": step,
                "tokens": 100 * step,
                "loss": loss,
                "lr": 0.1,
                "skipped": "loss" if step == 3 else None,
                "layers": layers,
            }
        )
    return out


def test_pictures_are_the_same_each_time_and_the_users_style_is_not_in_them(tmp_path: Path) -> None:
    import matplotlib

    evaluations = [Evaluation(step, "heldout", label, {"loss": 3.0 - step}) for step in (0, 1) for label in ("all", EVIL, "_x")]
    made = draw_plots(history(20), evaluations, 100, tmp_path / "a")
    assert [plot.file for plot in made] == ["loss.png", "heldout.png", "lr.png", "experts.png"]
    with matplotlib.rc_context({"lines.linewidth": 9, "text.usetex": True, "savefig.dpi": 30}):
        draw_plots(history(20), evaluations, 100, tmp_path / "b")
    for plot in made:
        data = (tmp_path / "a" / plot.file).read_bytes()
        assert data == (tmp_path / "b" / plot.file).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (800, 450)
        assert not {b"tEXt", b"tIME", b"iTXt"} & {data[i : i + 4] for i in range(len(data) - 4)}


def test_what_there_is_too_little_of_is_not_drawn(tmp_path: Path) -> None:
    nothing = [Evaluation(0, "heldout", "all", {"loss": 3.0}), Evaluation(1, "heldout", "all", {"loss": None})]
    assert draw_plots(history(1), nothing, 100, tmp_path / "a") == []
    assert not (tmp_path / "a").exists()


def test_long_curves_are_means_of_neighbours() -> None:
    n = 2 * MAX_POINTS + 1
    x, y = np.arange(n, dtype=float), np.arange(n, dtype=float)
    y[0], y[2:6] = math.nan, math.nan
    at, means, per_point = thin(x, y)
    assert (per_point, len(at)) == (3, -(-n // 3))
    assert (at[0], means[0], at[-1]) == (2, 1, n - 1)
    assert math.isnan(means[1])
    np.testing.assert_allclose(means[2:-1], y[6 : 3 * (len(at) - 1)].reshape(-1, 3).mean(1))
    assert thin(x[:5], y[:5])[2] == 1


def test_history_keeps_what_the_card_needs() -> None:
    kept = history(20)
    assert (len(kept.tokens), kept.skipped, math.isnan(kept.loss[2])) == (20, {"loss": 1}, True)
    assert [short_count(value) for value in (12, 2560, 2.5e6, 4e9, 5.1e12)] == ["12", "2.56k", "2.5M", "4B", "5.1T"]


# ---- commands ---------------------------------------------------------------------------------------------------------


def blocks(folder: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", (folder / "README.md").read_text(), re.S)


def call(folder: Path, words: list[str]) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def test_the_code_of_a_card_runs_in_its_folder(release: Path) -> None:
    (script,) = blocks(release, "python")
    assert call(release, [sys.executable, "-c", script]).startswith("The")


def test_the_checks_of_a_card_pass_and_find_a_change(release: Path, tmp_path: Path) -> None:
    by_us, by_hand = (block for block in blocks(release, "bash") if block.startswith(("olmo verify", "python -c")))
    assert "whole" in call(release, ["bash", "-c", by_us])
    assert call(release, ["bash", "-c", by_hand]) == ""
    changed = Path(shutil.copytree(release, tmp_path / "changed"))
    (changed / "training/state.json").write_text("{}")
    done = subprocess.run(["bash", "-c", by_hand], cwd=changed, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "training/state.json: FAILED\n"


def test_the_documents_of_a_step_are_found_from_the_release_and_the_shards(
    release: Path, corpus: TextCorpus, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(release, tmp_path / "release"))
    shutil.copytree(corpus.shards, folder / "training/data/demo", dirs_exist_ok=True)
    (command,) = (block for block in blocks(release, "bash") if "olmo data batch" in block)
    assert call(folder, ["bash", "-c", command]).startswith("step 10 row 0: source demo, epoch 0\n  columns [0, ")


@pytest.mark.slow
def test_a_release_is_the_beginning_of_another_run(release: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(release, tmp_path / "release"))
    (command,) = (block for block in blocks(release, "bash") if "load.path" in block)
    call(folder, ["bash", "-ec", f"{command} max_tokens=1024 data.sources.demo.path='{corpus.shards}'"])
    first = json.loads((tmp_path / "continued/metrics.jsonl").read_text().splitlines()[1])
    began: Release = read_release_folder(release)
    assert began.loss is not None
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(began.loss, abs=0.3)


def test_a_release_of_no_tokenizer_shows_code_without_one(copy: Path, tmp_path: Path) -> None:
    """Its manifest names none."""
    step = copy / "steps/step00000010"
    config = read_yaml(step / "config.yaml", TrainConfig)
    source = config.data.sources["demo"]
    shards = Path(shutil.copytree(source.path or "", tmp_path / "shards"))
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": None}))
    config.data.sources = {"demo": replace(source, path=str(shards))}
    rewrite(step, "config.yaml", to_yaml(config))
    make(copy, 10, tmp_path / "out")
    (script,) = blocks(tmp_path / "out", "python")
    assert call(tmp_path / "out", [sys.executable, "-c", script]) == f"torch.Size([1, 3, {VOCAB}])\n"
    assert "vllm" not in (tmp_path / "out/README.md").read_text()
