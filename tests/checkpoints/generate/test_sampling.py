"""Tokens are drawn as often as the model believes in them, among those that the options leave."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from checkpoints.generate.sampling import LIKELY, Sampling, candidates, choose_token

PROBS = torch.tensor([0.05, 0.4, 0.2, 0.3, 0.05])
EVERYTHING = Sampling(temperature=1.0, top_p=1.0)


def draws(sampling: Sampling, n: int = 4000) -> Counter[int]:
    generator = torch.Generator().manual_seed(0)
    return Counter(choose_token(PROBS.log(), sampling, generator) for _ in range(n))


def test_tokens_come_as_often_as_the_model_believes_in_them() -> None:
    for temperature in (1.0, 0.5, 2.0):
        found = draws(Sampling(temperature=temperature, top_p=1.0))
        wanted = (PROBS.log() / temperature).softmax(0)
        for token, prob in enumerate(wanted.tolist()):
            assert found[token] / 4000 == pytest.approx(prob, abs=4 * (prob * (1 - prob) / 4000) ** 0.5)
    assert set(draws(Sampling(temperature=0.0))) == {1}


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        *((Sampling(temperature=1.0, top_p=p), left) for p, left in ((0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3, 4}))),
        *((Sampling(temperature=1.0, top_p=1.0, top_k=k), left) for k, left in ((1, {1}), (2, {1, 3}), (3, {1, 2, 3}), (5, {0, 1, 2, 3, 4}), (99, {0, 1, 2, 3, 4}))),
        *((Sampling(temperature=1.0, top_p=1.0, min_p=p), left) for p, left in ((1.0, {1}), (0.74, {1, 3}), (0.49, {1, 2, 3}), (0.01, {0, 1, 2, 3, 4}))),
        (Sampling(temperature=1.0, top_p=0.58, top_k=3), {1, 3}),  # 0.58 of 0.9
        (Sampling(temperature=1.0, top_p=0.9, top_k=4, min_p=0.7), {1, 3}),
    ],
)  # fmt: skip
def test_the_options_leave_the_most_probable_tokens(sampling: Sampling, left: set[int]) -> None:
    found = draws(sampling)
    assert set(found) == left
    inside = float(sum(PROBS[token] for token in left))
    for token in left:
        assert found[token] / 4000 == pytest.approx(float(PROBS[token]) / inside, abs=0.04)


def logits(n: int, seed: int, spread: float) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [50, LIKELY + 1, 3000])
@pytest.mark.parametrize("spread", [0.1, 4.0], ids=["flat", "peaked"])
@pytest.mark.parametrize(
    "sampling",
    [
        EVERYTHING, Sampling(), Sampling(temperature=0.3, top_p=1.0), Sampling(temperature=1.5, top_p=0.999), Sampling(top_k=40),
        Sampling(top_k=300, top_p=0.5), Sampling(top_k=7, top_p=1.0), Sampling(min_p=0.1, top_p=1.0), Sampling(min_p=0.3),
        Sampling(top_k=5, top_p=0.7, min_p=0.2, temperature=2.0), Sampling(repetition_penalty=1.7), Sampling(repetition_penalty=0.5),
    ],
)  # fmt: skip
def test_probabilities_are_those_of_transformers(sampling: Sampling, n: int, spread: float, seed: int) -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    found = logits(n, seed, spread)
    seen = torch.randint(0, n, (1, 20), generator=torch.Generator().manual_seed(seed))
    steps = [
        processors.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        processors.TemperatureLogitsWarper(sampling.temperature),
    ]
    steps += [processors.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    steps += [processors.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    steps += [processors.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    theirs = found[None]
    for step in steps:
        theirs = step(seen, theirs)
    from checkpoints.generate.sampling import _penalise

    ids, probs = candidates(_penalise(found, sampling.repetition_penalty, seen[0].tolist()), sampling)
    mine = torch.zeros(n).index_put((ids,), probs / probs.sum())
    assert ids.tolist() == sorted(ids.tolist())
    torch.testing.assert_close(mine, theirs[0].softmax(-1), rtol=1e-4, atol=1e-7)


def test_a_penalty_lowers_what_was_said() -> None:
    generator = torch.Generator()
    assert choose_token(torch.tensor([2.0, 1.5, -1.0]), Sampling(temperature=0, repetition_penalty=2.0), generator, [0]) == 1
    assert choose_token(torch.tensor([-1.0, -1.5, -3.0]), Sampling(temperature=0, repetition_penalty=2.0), generator, [0, 0]) == 1
    assert choose_token(torch.tensor([2.0, 1.5, -1.0]), Sampling(temperature=0), generator, [0]) == 0


def test_rounding_changes_no_choice_but_at_a_border() -> None:
    """Two equally probable tokens change places in the order of probabilities, not in the order of ids."""
    for seed in range(300):
        plain = torch.zeros(8)
        nudged = plain + logits(8, seed, 1e-6)
        for sampling in (EVERYTHING, Sampling(temperature=1.0, top_k=8, top_p=0.9999)):
            chosen = [choose_token(x, sampling, torch.Generator().manual_seed(seed)) for x in (plain, nudged)]
            assert chosen[0] == chosen[1]


@pytest.mark.parametrize("temperature", [1e-9, 1e-38, 1e-300, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_coldest_temperatures_take_the_most_probable_token(temperature: float, top_p: float) -> None:
    assert set(draws(Sampling(temperature=temperature, top_p=top_p))) == {1}


def test_a_token_without_probability_is_never_drawn() -> None:
    found = torch.tensor([float("-inf"), 0.0, float("-inf"), 0.0])
    generator = torch.Generator().manual_seed(0)
    assert {choose_token(found, EVERYTHING, generator) for _ in range(200)} == {1, 3}
