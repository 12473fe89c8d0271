"""The report says what the run's own files say, and every command it proposes works."""

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from checkpoints.report import main
from olmo_train import cli
from olmo_train.checkpoint import read_state
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.schema import read_yaml, to_plain
from tests.runs import metrics, run_training, small
from tests.texts import VOCAB, TextCorpus


def report(run: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    main([str(run)])
    return capsys.readouterr().out.splitlines()


def commands(lines: list[str]) -> list[list[str]]:
    """The words of each proposed command, as a shell would split them."""
    proposals = lines[lines.index("Try next:") + 1 :]
    assert all(line.startswith("      ") for line in proposals[1::2])  # what each one is for
    return [shlex.split(line) for line in proposals[::2]]


def execute(words: list[str]) -> None:
    """Run a command of the report: training in a process of its own, anything else here."""
    assert words[0] == "olmo"
    verb = next(" ".join(words[1 : n + 1]) for n in (2, 1) if " ".join(words[1 : n + 1]) in cli.VERBS)
    arguments = words[1 + len(verb.split()) :]
    if verb == "train":
        run_training(arguments)
    else:
        importlib.import_module(cli.VERBS[verb][0]).main(arguments)


def test_its_numbers_are_those_of_the_run(run: Path, corpus: TextCorpus, capsys: pytest.CaptureFixture[str]) -> None:
    lines = report(run, capsys)
    assert re.fullmatch(
        r"first: 40,224 parameters, 34,080 active per token; 10 steps, 2,560 tokens, [\d,]+ tokens/s \(median\)", lines[0]
    )
    evaluated = [line for line in metrics(run) if "eval" in line]
    assert [line["step"] for line in evaluated] == [0, 5, 10]
    for text, line in zip(lines[3:6], evaluated, strict=True):
        parts = [f"{name} {v['loss']:.4f} ({v['bits_per_byte']:.4f})" for name, v in line["eval"]["heldout"].items()]
        assert text == "   ".join([f"  step {line['step']:>6}", *parts])
    ids = np.concatenate([np.fromfile(path, "<u2") for path in corpus.shards.glob("*/*.npy")])
    p = np.unique(ids, return_counts=True)[1] / len(ids)
    assert lines[6].startswith(f"  unigram entropy of {corpus.shards}: {-(p * np.log(p)).sum():.4f} ")
    assert [line.split("  ")[-1].strip() for line in lines if f"  {run}/steps/" in line] == ["6 checkpoints, steps 0 to 10"]


def test_every_place_it_names_is_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = report(run, capsys)
    places = lines[lines.index("What lies where:") + 1 : lines.index("Try next:") - 1]
    paths = [Path(re.split(r"  +", line.strip())[0]) for line in places]
    assert [path.name for path in paths] == ["steps", "metrics.jsonl", "data.jsonl", "provenance.json", "shards"]
    assert all(path.exists() for path in paths)


def test_every_command_it_proposes_runs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    proposed = commands(report(run, capsys))
    assert [" ".join(words[1:3]) for words in proposed] == [
        f"generate {run}", "data batch", "data when", "checkpoints list", "checkpoints verify", "train run_name=first_anneal",
    ]  # fmt: skip
    said = []
    for words in proposed:
        execute(words)
        said.append(capsys.readouterr().out)
    assert said[0].startswith("def main():")
    assert said[1].startswith("step 10 row 0: source demo")
    assert "  step 1 row 0 epoch 0: " in said[2]  # a document that training did see
    anneal = Path(f"{run}_anneal")
    lines = metrics(anneal)
    assert [line["step"] for line in lines] == list(range(11))
    start = read_state(run / "steps/step00000010")["lr"]
    assert [line["lr"] for line in lines[1:]] == pytest.approx([start * (1 - step / 10) for step in range(1, 11)])
    assert lines[1]["loss"] < metrics(run)[1]["loss"]


DENSE = [
    "model=tiny_dense",
    "model.d_model=32",
    "model.d_ff=48",
    "model.n_layers=2",
    "model.n_heads=4",
    f"model.vocab_size={VOCAB}",
]


def test_the_anneal_is_of_the_same_model_on_the_same_data(
    corpus: TextCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dense model, a source of another name, lists, null sections, a rate of zero at the end and a path with a space."""
    folder = tmp_path / "with a space" / "dense"
    words = ["optim.schedule.final_frac=0", "optim.skip=null", "optim.no_decay=[norm]", "data.repetition_mask=null"]
    words += [f"+data.sources.texts={{path: '{corpus.shards}', select: places}}", "~data.sources.demo", *DENSE]
    overrides = [word for word in small(corpus.shards, folder) if not word.startswith(("model", "data.sources", "run_dir"))]
    run_training([*overrides, f"run_dir='{folder}'", *words])
    monkeypatch.chdir(tmp_path)
    for proposal in commands(report(folder, capsys)):
        execute(proposal)
    assert read_state(folder / "steps/step00000010")["lr"] == 0
    kept, annealed = (to_plain(read_yaml(path / "config.yaml", TrainConfig)) for path in (folder, Path(f"{folder}_anneal")))
    assert annealed["load"]["path"] == str(folder / "steps/step00000005")  # the last one with a rate above zero
    for section in ("model", "data", "parallel"):
        assert annealed[section] == kept[section]
    free = ("lr", "schedule")
    assert {k: v for k, v in annealed["optim"].items() if k not in free} == {
        k: v for k, v in kept["optim"].items() if k not in free
    }


def test_an_anneal_can_be_annealed_again(
    corpus: TextCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its only checkpoint stopped at a rate of zero: the proposal gives the rate the run had."""
    words = [f"data.sources.demo.path='{corpus.shards}'", f"model.vocab_size={VOCAB}", "optim.schedule.final_frac=0"]
    run_training(small(corpus.shards, tmp_path / "run", *words, "checkpoint.save_every=10"))
    monkeypatch.chdir(tmp_path)
    proposal = commands(report(tmp_path / "run", capsys))[-1]
    assert "optim.lr=0.01" in proposal
    execute(proposal)
    assert metrics(tmp_path / "run_anneal")[0]["lr"] == pytest.approx(0.009)


def test_without_a_tokenizer_no_command_needs_one(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(small(shards, tmp_path / "run", "max_tokens=512", "optim.schedule.warmup_tokens=256"))
    monkeypatch.chdir(tmp_path)
    lines = report(tmp_path / "run", capsys)
    assert lines[2] == "Held-out loss: not evaluated yet (eval.eval_every)"
    proposed = commands(lines)
    assert [words[1] for words in proposed] == ["data", "data", "checkpoints", "checkpoints", "train"]
    for words in proposed:
        execute(words)


def test_a_run_that_only_began_has_a_report_too(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 4, 5, 10):
        (copy / f"steps/step{step:08d}/manifest.json").unlink()
    text = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(text.splitlines()[0] + '\n{"step": 1, "lo')
    lines = report(copy, capsys)
    assert lines[0].endswith("; no step yet")
    assert [line.split()[1] for line in lines[3:-1] if line.startswith("  step ")] == ["0"]
    for words in commands(lines)[:-1]:
        execute(words)
    capsys.readouterr()
    (copy / "metrics.jsonl").unlink()
    assert report(copy, capsys)[2] == "Held-out loss: not evaluated yet (eval.eval_every)"


def test_a_loss_that_was_not_finite_is_said(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = metrics(copy)
    lines[-1]["eval"]["heldout"]["animals"] |= {"loss": None, "bits_per_byte": None}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "step     10   animals not finite   places " in report(copy, capsys)[5]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not the folder of a run \(it has no config.yaml\)"):
        main([str(tmp_path)])
