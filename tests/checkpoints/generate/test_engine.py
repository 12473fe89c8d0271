"""Samples are the model's own distribution, drawn from; whatever else is in the batch."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoints.generate.engine import Batch, Finish, Limits, Sample, generate
from checkpoints.generate.sampling import Sampling
from checkpoints.load import load_model
from checkpoints.opening import open_step_folder
from olmo_train.model.decode import Decoder
from olmo_train.model.transformer import Transformer
from tests.olmo_train.model.test_parity import CASES, our_model, their_model
from tests.runs import run_training, small
from tests.texts import TextCorpus

CPU = torch.device("cpu")
GREEDY = Sampling(temperature=0)
FREE = Sampling(temperature=1.0, top_p=0.9)
PROMPTS = [[0, 70, 71, 72], [0], [0, 5, 6], [0, 70, 71, 72], [0, 9, 9, 9, 9, 9], [0, 44], [0, 1, 2], [0, 3]]


@pytest.fixture(scope="module")
def model(run: Path) -> Transformer:
    """16 tokens were its context in training."""
    return load_model(open_step_folder(run / "steps/step00000010"), CPU)


@torch.no_grad()
def full(model: Transformer, ids: list[int]) -> Tensor:
    logits = model(torch.tensor([ids]))
    assert isinstance(logits, Tensor)
    return logits[0, -1, : model.config.vocab_size]


def tokens(model: Transformer, prompts: list[list[int]], limits: Limits, sampling: Sampling, seed: int = 0) -> list[list[int]]:
    return [sample.tokens for sample in generate(model, prompts, limits, sampling, seed)]


def test_greedy_is_the_argmax_of_whole_forward_passes(model: Transformer) -> None:
    """Within the context, and sliding well past it."""
    for slide, n in ((False, 13), (True, 30)):
        for prompt in ([0, 70, 71, 72], [0, *range(40, 60)] if slide else [0, 5]):
            expected = list(prompt)
            for _ in range(n):
                expected.append(int(full(model, expected[-16:]).argmax()))
            found = tokens(model, [prompt], Limits(n, 16, slide=slide), GREEDY)[0]
            assert found == expected[len(prompt) :]


def test_rows_that_slide_at_different_times_are_exact(model: Transformer) -> None:
    found = tokens(model, PROMPTS, Limits(25, 16, slide=True), GREEDY)
    for prompt, new in zip(PROMPTS, found, strict=True):
        ids = [*prompt, *new]
        for place in range(len(prompt), len(ids)):
            logits = full(model, ids[max(0, place - 16) : place])
            assert float(logits[ids[place]]) > float(logits.max()) - 1e-4


def test_a_sample_ends_where_the_context_is_full(model: Transformer) -> None:
    """The last token is drawn from a full context and is seen by nobody."""
    samples = generate(model, [[0, 70, 71], [0] * 16], Limits(100, 16), GREEDY)
    assert [len(sample.tokens) for sample in samples] == [14, 1]
    assert {sample.finish for sample in samples} == {Finish.LENGTH}


def test_generation_ends_at_the_end_of_text(model: Transformer) -> None:
    whole = tokens(model, [[0]], Limits(12, 16), FREE, 3)[0]
    stop = whole[5]
    (sample,) = generate(model, [[0]], Limits(12, 16, stop), FREE, 3)
    assert sample.tokens == whole[: whole.index(stop)]
    assert sample.finish == Finish.STOP


@pytest.mark.parametrize("sampling", [GREEDY, FREE, Sampling(), Sampling(top_k=5, repetition_penalty=1.3, min_p=0.05)])
def test_a_sample_does_not_depend_on_its_batch(model: Transformer, sampling: Sampling) -> None:
    def made(groups: list[list[int]]) -> dict[tuple[int, int], list[int]]:
        samples = [Sample(ids, prompt, n) for prompt, ids in enumerate(PROMPTS) for n in range(2)]
        for group in groups:
            batch = Batch(Decoder(model), [samples[i] for i in group], Limits(10, 16, 12), sampling, seed=4)
            while batch.live:
                batch.step()
        return {(sample.prompt, sample.sample): sample.tokens for sample in samples}

    alone = made([[i] for i in range(16)])
    assert made([list(range(16))]) == alone
    assert made([list(range(16))[::-1]]) == alone
    assert made([[3, 9, 1], [0, 2, 4, 5, 6, 7, 8], [15, 10, 11, 12, 13, 14]]) == alone
    if sampling.temperature:
        assert len({tuple(found) for found in alone.values()}) > 12  # samples of one prompt differ, and equal prompts do
        assert alone[0, 0] != alone[3, 0]


def test_rows_that_end_make_room(model: Transformer) -> None:
    """Samples end at different steps; the others go on as if nothing was."""
    few = Sampling(temperature=1.0, top_k=3)
    unstopped = [sample.tokens for sample in generate(model, PROMPTS * 3, Limits(14, 18), few, seed=1)]
    stop = Counter(token for row in unstopped for token in row).most_common(1)[0][0]
    samples = [Sample(ids, prompt) for prompt, ids in enumerate(PROMPTS * 3)]
    batch = Batch(Decoder(model), samples, Limits(14, 18, stop), few, seed=1)
    sizes = set()
    while batch.live:
        batch.step()
        sizes.add(len(batch._rows))
    assert len(sizes) > 1
    for sample, row in zip(samples, unstopped, strict=True):
        assert sample.tokens == (row[: row.index(stop)] if stop in row else row)


def test_log_probabilities_are_the_models_own(model: Transformer) -> None:
    sampling = Sampling(temperature=1.7, top_k=20, repetition_penalty=1.2)
    for sample in generate(model, PROMPTS[:3], Limits(9, 16), sampling, seed=2):
        ids, expected = list(sample.ids), 0.0
        for token in sample.tokens:
            expected += float(full(model, ids).log_softmax(-1)[token])
            ids.append(token)
        assert sample.logprob == pytest.approx(expected, abs=1e-4)


def test_a_padded_row_is_never_drawn(corpus: TextCorpus, tmp_path: Path) -> None:
    """An untrained model gives rows beyond the vocabulary as much probability as any other."""
    words = ["model.vocab_size=300", "model.padded_vocab_size=3000", "max_tokens=256", "optim.schedule.warmup_tokens=0"]
    run_training(small(corpus.shards, tmp_path / "run", f"data.sources.demo.path='{corpus.shards}'", *words))
    model = load_model(open_step_folder(tmp_path / "run/steps/step00000001"), CPU)
    logits = model(torch.tensor([[0]]))
    assert isinstance(logits, Tensor)
    assert logits.shape[-1] == 3000
    assert max(tokens(model, [[0]], Limits(100, 200), Sampling(temperature=2.0, top_p=1.0))[0]) < 300


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_transformers(case: str) -> None:
    theirs = their_model(*CASES[case], 5)
    ours, _ = our_model(theirs)
    ids = torch.randint(1, 60, (3, 12), generator=torch.Generator().manual_seed(1))
    wanted = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    found = tokens(ours.eval(), ids.tolist(), Limits(40, 64), GREEDY)
    assert found == wanted[:, 12:].tolist()
