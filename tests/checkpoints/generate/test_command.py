"""`olmo generate`: what it prints, in which order, how it ends, and what it refuses."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as HFTokenizer

from checkpoints.convert.hf_folder import write_hf
from checkpoints.generate.command import EXIT_INTERRUPTED, Job, main
from checkpoints.generate.command import run as make
from checkpoints.generate.engine import Limits, Sample, generate
from checkpoints.generate.output import Printer
from checkpoints.generate.prompts import encode_prompts
from checkpoints.generate.sampling import Sampling
from checkpoints.load import load_model
from checkpoints.opening import open_step_folder
from olmo_train.errors import ConfigError
from olmo_train.model.decode import Decoder
from olmo_train.tokenizer import Tokenizer
from tests.texts import TextCorpus

CPU = torch.device("cpu")
TEXTS = ["the old", "", "a cat sees", "it stays", "the"]


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    main([str(word) for word in words])
    return capsys.readouterr().out


def objects(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said(capsys, *words, "--json").splitlines()]


def expected(run: Path, corpus: TextCorpus, step: int, prompt: str, n: int) -> Sample:
    tokenizer = Tokenizer(corpus.tokenizer)
    model = load_model(open_step_folder(run / f"steps/step{step:08d}"), CPU)
    ids = [tokenizer.eos_id, *tokenizer.encode(prompt)]
    return generate(model, [ids], Limits(n, 16, tokenizer.eos_id), Sampling(temperature=0))[0]


def test_the_command_prints_prompt_and_continuation(run: Path, corpus: TextCorpus, capsys: pytest.CaptureFixture[str]) -> None:
    text = Tokenizer(corpus.tokenizer).decode(expected(run, corpus, 5, "the old", 9).tokens)
    command = [run, "--step", 5, "--prompt", "the old", "--temperature", 0, "--max-tokens", 9]
    for more in ([], ["--no-stream"], ["--tokenizer", corpus.tokenizer, "--device", "cpu"]):
        assert said(capsys, *command, *more) == f"the old{text}\n"
    folder = run / "steps/step00000005"
    assert said(capsys, folder, *command[3:]) == f"the old{text}\n"


def test_a_hugging_face_folder_says_the_same(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_hf(open_step_folder(run / "steps/step00000010"), tmp_path / "hf")
    words = ["--prompt", "the old", "--max-tokens", 9, "--seed", 3]
    assert said(capsys, tmp_path / "hf", *words) == said(capsys, run, *words)


def test_an_empty_prompt_begins_a_document(run: Path, corpus: TextCorpus, capsys: pytest.CaptureFixture[str]) -> None:
    sample = expected(run, corpus, 10, "", 9)
    assert sample.ids == [Tokenizer(corpus.tokenizer).eos_id]
    (line,) = objects(capsys, run, "--temperature", 0, "--max-tokens", 9)
    assert line["tokens"] == sample.tokens
    assert line["prompt"] == ""


def test_an_object_says_all_of_a_sample(run: Path, corpus: TextCorpus, capsys: pytest.CaptureFixture[str]) -> None:
    sample = expected(run, corpus, 10, "the old", 5)
    (line,) = objects(capsys, run, "--prompt", "the old", "--temperature", 0, "--max-tokens", 5, "--seed", 7)
    assert line.pop("logprobs") == pytest.approx(sample.logprob, abs=1e-4)
    text = Tokenizer(corpus.tokenizer).decode(sample.tokens)
    assert line == {"prompt": "the old", "sample": 0, "text": text, "tokens": sample.tokens, "finish_reason": "length", "seed": 7}


def test_the_same_seed_says_the_same_and_another_says_something_else(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [
        said(capsys, run, "--max-tokens", 12, *words)
        for words in (
            ["--seed", 1],
            ["--seed", 1, "--no-stream"],
            ["--seed", 2],
            ["--seed", 1, "--step", 0],
            ["--seed", 1, "--step", 10],
        )
    ]
    assert texts[0] == texts[1] == texts[4]  # the newest step is 10
    assert len({texts[0], texts[2], texts[3]}) == 3


def test_output_does_not_depend_on_the_batch_size(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [run, "--prompt", *TEXTS, "--n", 3, "--max-tokens", 8, "--seed", 2, "--stop", " s"]
    for form in ([], ["--json"]):
        texts = [said(capsys, *command, *form, "--batch-size", size) for size in (1, 4, 15, 100)]
        for other in texts[1:] if not form else []:
            assert other == texts[0]
        if form:
            lines = [[json.loads(line) for line in text.splitlines()] for text in texts]
            for other in lines[1:]:
                for a, b in zip(lines[0], other, strict=True):
                    assert a | {"logprobs": 0} == b | {"logprobs": 0}
                    assert a["logprobs"] == pytest.approx(b["logprobs"], abs=1e-4)
            assert [(line["prompt"], line["sample"]) for line in lines[0]] == [(text, n) for text in TEXTS for n in range(3)]
    alone = objects(capsys, run, "--prompt", TEXTS[0], "--max-tokens", 8, "--seed", 2, "--stop", " s")
    assert alone[0]["tokens"] == lines[0][0]["tokens"]


def test_several_texts_are_labelled(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [run, "--temperature", 0, "--max-tokens", 4]
    one, two = (said(capsys, *words, "--prompt", text) for text in TEXTS[2:4])
    assert said(capsys, *words, "--prompt", TEXTS[2], "--prompt", TEXTS[3]) == f"== prompt 1\n{one}\n== prompt 2\n{two}\n"
    words = [run, "--max-tokens", 4, "--prompt", "the"]
    several = objects(capsys, *words, "--n", 2)
    parts = [f"== prompt 1, sample {i + 1}\nthe{line['text']}\n\n" for i, line in enumerate(several)]
    assert said(capsys, *words, "--n", 2) == "".join(parts)


def test_prompts_come_from_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"the old"\n\n{"prompt": "a \\u00e9\\u2028cat", "id": 3}\n""\n', encoding="utf-8")
    lines = objects(capsys, run, "--prompts-file", file, "--max-tokens", 3)
    assert [line["prompt"] for line in lines] == ["the old", "a \u00e9\u2028cat", ""]


def test_a_text_ends_before_what_it_shall_stop_at(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [run, "--prompt", "the old", "--max-tokens", 10, "--temperature", 0]
    (whole,) = objects(capsys, *words)
    stop = whole["text"][3:6]
    (line,) = objects(capsys, *words, "--stop", "never said", stop)
    assert line["finish_reason"] == "stop_text"
    assert line["text"] == whole["text"][: whole["text"].index(stop)]
    assert line["tokens"] == whole["tokens"][: len(line["tokens"])]
    assert said(capsys, *words, "--stop", stop) == f"the old{line['text']}\n"
    assert said(capsys, *words, "--stop", stop, "--no-stream") == f"the old{line['text']}\n"


def test_the_end_of_text_ends_a_sample(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that says nothing else: its last row of the output projection is the end of text's."""
    from safetensors.torch import load_file, save_file

    write_hf(open_step_folder(run / "steps/step00000010"), tmp_path / "hf")
    weights = load_file(tmp_path / "hf/model.safetensors")
    direction = weights["model.norm.weight"].clone().zero_()
    direction[0] = 1e4
    weights["model.norm.weight"].zero_()[0] = 1.0
    weights["lm_head.weight"].zero_()
    eos = json.loads((tmp_path / "hf/config.json").read_text())["eos_token_id"]
    weights["lm_head.weight"][eos], weights["lm_head.weight"][eos + 1] = direction, -direction
    save_file(weights, tmp_path / "hf/model.safetensors", {"format": "pt"})
    lines = objects(capsys, tmp_path / "hf", "--prompt", *TEXTS, "--temperature", 0, "--max-tokens", 4)
    ended = [line for line in lines if line["finish_reason"] == "stop"]
    assert all(line["tokens"] == [] and line["text"] == "" and line["logprobs"] == 0 for line in ended)
    assert all(set(line["tokens"]) == {eos + 1} for line in lines if line not in ended)
    assert ended


def test_a_full_context_is_told_of_and_slides_if_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = ["--temperature", "0"]
    main([str(run), "--prompt", "the", "it", "--max-tokens", "40", "--json", *greedy])
    captured = capsys.readouterr()
    assert [json.loads(line)["finish_reason"] for line in captured.out.splitlines()] == ["length", "length"]
    assert captured.err == (
        "note: 2 of 2 samples ended where the context of 16 tokens is full, before --max-tokens=40; "
        "--slide goes on, without the first tokens and without a cache\n"
    )
    main([str(run), "--max-tokens", "40", *greedy])
    assert capsys.readouterr().err.startswith("note: the sample ended where the context of 16")
    main([str(run), "--prompt", "the " * 40, "--max-tokens", "40", "--slide", "--json", *greedy])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert len(json.loads(captured.out)["tokens"]) == 40


def test_bfloat16_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = objects(capsys, run, "--max-tokens", 6, "--dtype", "bfloat16")
    assert len(line["tokens"]) == 6


# ---- how it ends -----------------------------------------------------------------------------------------------------------


ENDLESS = ["--max-tokens", "1000000", "--slide", "--temperature", "0"]
"""What this model says most probably never ends."""


def start(*words: object, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "checkpoints.generate.command", *map(str, words)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    # What starts the tests in the background ignores SIGINT, and children inherit that.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heed)


def test_an_interrupted_text_is_what_was_made(run: Path) -> None:
    process = start(run, "--prompt", "the old", *ENDLESS)
    assert process.stdout is not None
    seen = process.stdout.read(60)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert errors == ""
    assert seen.startswith("the old")
    assert rest.endswith("\n")


def test_interrupted_objects_are_whole(run: Path, corpus: TextCorpus, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    tokenizer = Tokenizer(corpus.tokenizer)
    decoder = Decoder(load_model(open_step_folder(run / "steps/step00000010"), CPU))
    samples = [Sample(ids, prompt) for prompt, ids in enumerate(encode_prompts(TEXTS[:3], tokenizer, 16, slide=True))]
    job = Job(samples, Limits(10**6, 16, slide=True), Sampling(), seed=0, stops=[], batch_size=2)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            make(job, decoder, tokenizer, Printer(TEXTS, 1, 0, as_json=True, stream=True))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == TEXTS[:2]  # the third was not begun
    assert {line["finish_reason"] for line in lines} == {"interrupted"}
    assert all(line["text"] for line in lines)


def test_a_closed_pipe_is_no_error(run: Path) -> None:
    process = start(run, "--prompt", "the old", *ENDLESS)
    assert process.stdout is not None
    process.stdout.read(20)
    process.stdout.close()
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.returncode == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


# ---- what is refused -------------------------------------------------------------------------------------------------------


def refused(*words: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        main([str(word) for word in words])
    return caught.value.problems


def test_bad_values_are_refused_together(run: Path) -> None:
    words = ["--max-tokens", 0, "--temperature", -1, "--top-p", 1.5, "--top-k", -2, "--min-p", 2, "--repetition-penalty", 0]
    assert refused(run, *words, "--n", 0, "--batch-size", 0, "--stop", "x", "") == [
        "--max-tokens=0 must be positive",
        "--temperature=-1.0 must not be negative",
        "--top-p=1.5 must be in (0, 1]",
        "--top-k=-2 must be positive, or 0 for all tokens",
        "--min-p=2.0 must be in [0, 1]",
        "--repetition-penalty=0.0 must be positive; 1: none",
        "--n=0 must be positive",
        "--batch-size=0 must be positive",
        "--stop '' would end every text before it begins; give a text",
    ]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_values_that_are_no_numbers_are_refused(run: Path, value: str) -> None:
    names = ("temperature", "top-p", "min-p", "repetition-penalty")
    problems = refused(run, *(word for name in names for word in (f"--{name}", value)))
    assert [problem.split("=")[0] for problem in problems] == [f"--{name}" for name in names]


def test_equal_samples_are_refused(run: Path) -> None:
    assert refused(run, "--n", 3, "--temperature", 0) == [
        "--n=3 with --temperature=0 would be 3 times the same text; raise the temperature"
    ]


def test_prompts_longer_than_the_context_are_refused_together(run: Path) -> None:
    problems = refused(run, "--prompt", "cat " * 30, "the", "dog " * 40)
    assert len(problems) == 2
    assert problems[0].startswith("prompt 1 has ")
    assert problems[1].startswith("prompt 3 has ")
    assert problems[1].endswith(
        "tokens (end of text included), the model was trained on 16 at a time; shorten it, or give --slide, which continues its "
        "last ones"
    )


def test_a_file_of_something_else_is_refused(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"good"\n{"text": "no prompt"}\nplain text\n[1]\n{"prompt": 3}\n')
    form = 'is neither a JSON string nor {"prompt": "..."}'
    assert refused(run, "--prompts-file", file) == [
        f'--prompts-file={file}: line 2 {form}: {{"text": "no prompt"}}',
        f"--prompts-file={file}: line 3 {form}: plain text",
        f"--prompts-file={file}: line 4 {form}: [1]",
        f'--prompts-file={file}: line 5 {form}: {{"prompt": 3}}',
    ]
    file.write_text("\n\n")
    assert refused(run, "--prompts-file", file) == [f"--prompts-file={file} has no prompts; write a JSON string per line"]
    file.write_bytes(b'"\xff"')
    assert "cannot be read: 'utf-8' codec" in refused(run, "--prompts-file", file)[0]
    assert "No such file" in refused(run, "--prompts-file", tmp_path / "none")[0]


def test_prompts_of_both_kinds_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(run), "--prompt", "a", "--prompts-file", str(tmp_path / "x")])
    assert caught.value.code == 2
    assert "not allowed with argument --prompt" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(run: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    bigger = HFTokenizer.from_file(str(corpus.tokenizer))
    bigger.add_tokens(["unheard of"])
    other = tmp_path / "tokenizer.json"
    bigger.save(str(other))
    assert refused(run, "--tokenizer", other) == [
        f"{other}: 301 ids, the model has 300 rows; give --tokenizer the one of the run's shards"
    ]


def test_an_unknown_tokenizer_is_refused(run: Path, tmp_path: Path) -> None:
    assert refused(run, "--tokenizer", tmp_path / "none.json")[0].startswith(f"{tmp_path / 'none.json'}: No such file")
    write_hf(open_step_folder(run / "steps/step00000010"), tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").unlink()
    assert refused(tmp_path / "hf") == [f"{tmp_path / 'hf'}: no tokenizer is known; give --tokenizer tokenizer.json"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(run: Path) -> None:
    assert "torch finds no CUDA device" in refused(run, "--device", "cuda")[0]
