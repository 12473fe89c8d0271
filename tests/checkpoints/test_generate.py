"""Generation is the model's own distribution, drawn from: greedy, within the nucleus, and the same for the same seed."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as HFTokenizer
from torch import Tensor

from checkpoints.generate import Sampling, choose_token, generate, main
from checkpoints.load import load_model
from checkpoints.opening import open_step_folder
from olmo_train.errors import ConfigError
from olmo_train.tokenizer import Tokenizer
from tests.runs import run_training, small
from tests.texts import TextCorpus

CPU = torch.device("cpu")
GREEDY = Sampling(temperature=0, context=16)
PROBS = torch.tensor([0.05, 0.4, 0.2, 0.3, 0.05])


def draws(sampling: Sampling, n: int = 4000) -> Counter[int]:
    generator = torch.Generator().manual_seed(sampling.seed)
    return Counter(choose_token(PROBS.log(), sampling, generator) for _ in range(n))


def test_greedy_is_the_argmax_of_whole_forward_passes(run: Path) -> None:
    checkpoint = open_step_folder(run / "steps/step00000010")
    model = load_model(checkpoint, CPU)
    assert checkpoint.seq_len == GREEDY.context
    ids = [0, 70, 71, 72]
    expected = list(ids)
    for _ in range(30):  # well past the 16 tokens that the model sees
        with torch.no_grad():
            logits = model(torch.tensor([expected[-16:]]))
        assert isinstance(logits, Tensor)
        expected.append(int(logits[0, -1].argmax()))
    assert generate(model, ids, 30, GREEDY, None) == expected[4:]


def test_generation_ends_at_the_end_of_text(run: Path) -> None:
    model = load_model(open_step_folder(run / "steps/step00000010"), CPU)
    whole = generate(model, [0], 12, Sampling(seed=3, context=16), None)
    stop = whole[5]
    assert generate(model, [0], 12, Sampling(seed=3, context=16), stop) == whole[: whole.index(stop)]


def test_tokens_come_as_often_as_the_model_believes_in_them() -> None:
    for temperature in (1.0, 0.5, 2.0):
        found = draws(Sampling(temperature, top_p=1.0))
        wanted = (PROBS.log() / temperature).softmax(0)
        for token, prob in enumerate(wanted.tolist()):
            assert found[token] / 4000 == pytest.approx(prob, abs=4 * (prob * (1 - prob) / 4000) ** 0.5)
    assert set(draws(Sampling(0.0))) == {1}


def test_the_nucleus_is_the_fewest_tokens_with_that_probability() -> None:
    for top_p, nucleus in ((0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3, 4})):
        found = draws(Sampling(1.0, top_p))
        assert set(found) == nucleus, top_p
        inside = float(sum(PROBS[token] for token in nucleus))
        for token in nucleus:
            assert found[token] / 4000 == pytest.approx(float(PROBS[token]) / inside, abs=0.04)


def test_a_padded_row_is_never_drawn(corpus: TextCorpus, tmp_path: Path) -> None:
    """An untrained model gives rows beyond the vocabulary as much probability as any other."""
    words = ["model.vocab_size=300", "model.padded_vocab_size=3000", "max_tokens=256", "optim.schedule.warmup_tokens=0"]
    run_training(small(corpus.shards, tmp_path / "run", f"data.sources.demo.path='{corpus.shards}'", *words))
    model = load_model(open_step_folder(tmp_path / "run/steps/step00000001"), CPU)
    logits = model(torch.tensor([[0]]))
    assert isinstance(logits, Tensor)
    assert logits.shape[-1] == 3000
    assert max(generate(model, [0], 100, Sampling(2.0, 1.0, context=16), None)) < 300


def test_the_command_prints_prompt_and_continuation(run: Path, corpus: TextCorpus, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(open_step_folder(run / "steps/step00000005"), CPU)
    tokenizer = Tokenizer(corpus.tokenizer)
    new = generate(model, [tokenizer.eos_id, *tokenizer.encode("the old")], 20, GREEDY, tokenizer.eos_id)
    command = [str(run), "--step", "5", "--prompt", "the old", "--temperature", "0", "--max-tokens", "20"]
    main(command)
    assert capsys.readouterr().out == "the old" + tokenizer.decode(new) + "\n"
    main([*command, "--tokenizer", str(corpus.tokenizer), "--device", "cpu"])
    assert capsys.readouterr().out == "the old" + tokenizer.decode(new) + "\n"


def test_the_same_seed_says_the_same_and_another_says_something_else(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for words in (
        ["--seed", "1"],
        ["--seed", "1"],
        ["--seed", "2"],
        ["--seed", "1", "--step", "0"],
        ["--seed", "1", "--step", "10"],
    ):
        main([str(run), "--max-tokens", "40", *words])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[4]  # the newest step is 10
    assert len({said[0], said[2], said[3]}) == 3


def test_bad_values_are_refused_together(run: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        main([str(run), "--max-tokens", "0", "--temperature", "-1", "--top-p", "1.5"])
    assert caught.value.problems == [
        "--max-tokens=0 must be positive",
        "--temperature=-1.0 must not be negative",
        "--top-p=1.5 must be in (0, 1]",
    ]


def test_a_tokenizer_of_another_model_is_refused(run: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    bigger = HFTokenizer.from_file(str(corpus.tokenizer))
    bigger.add_tokens(["unheard of"])
    other = tmp_path / "tokenizer.json"
    bigger.save(str(other))
    with pytest.raises(ConfigError, match="tokenizer.json: 301 ids, the model has 300 rows; give --tokenizer the one of the run"):
        main([str(run), "--tokenizer", str(other)])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="torch finds no CUDA device"):
        main([str(run), "--device", "cuda"])
