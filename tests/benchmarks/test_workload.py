"""What all sides of a benchmark are given."""

import pytest
import torch

from benchmarks.kernel_cases import TINY, documents_of, skewed_experts
from benchmarks.kernel_cases import document_numbers as numbers_of
from benchmarks.profile import group_flops
from benchmarks.sides import initial_weight, parse_peer
from benchmarks.workload import compose, load, merge, recipe_words, rows_to_try
from olmo_train.model.shapes import param_shapes
from olmo_train.model.size import count_params, flops_per_token

OLMOE = 6_919_161_856


def test_a_gpu_trains_olmoe_as_it_was_trained() -> None:
    run = load(compose(True, []))
    assert count_params(run.model).total == OLMOE
    assert run.model.moe is not None
    assert (run.data.seq_len, run.data.global_batch_size, run.model.moe.load_balancing_scope) == (4096, 32768, "local")
    assert run.model.moe.load_balancing_loss_weight > 0


def test_another_model_brings_its_own_optimizer() -> None:
    run = load(compose(True, ["model=olmo2_1b", "data.global_batch_size=65536"]))
    assert run.model.moe is None
    assert (run.data.global_batch_size, run.optim.no_decay) == (65536, ["embedding"])


def test_later_words_win() -> None:
    assert merge(["a=1", "b=2"], ["a=3"]) == ["a=3", "b=2"]


@pytest.mark.parametrize(
    ("words", "gib", "expected"),
    [
        ([], 139.8, ("float32", "bfloat16")),
        (["data.micro_batch_size=16384"], 79.1, ("bfloat16", "int8")),
        (["data.micro_batch_size=16384", "data.global_batch_size=16384"], 79.1, ("bfloat16", "bfloat16")),
        (["model=olmo2_1b"], 139.8, ("float32", "float32")),
    ],
)
def test_number_formats_follow_the_card(words: list[str], gib: float, expected: tuple[str, str]) -> None:
    config = compose(True, words)
    optim = load(merge(recipe_words(config, gib), config)).optim
    assert (optim.weight_dtype, optim.moment_dtype) == expected


def test_micro_batches_are_tried_from_the_largest() -> None:
    words, asked = compose(True, []), ["data.micro_batch_size=8192"]
    assert rows_to_try(words, [], 139.8, is_peer=True) == [8, 4, 2, 1]
    assert rows_to_try(words, [], 79.1, is_peer=False) == [4, 2, 1]
    assert rows_to_try(words, [], 79.1, is_peer=True) == [2, 1]
    assert rows_to_try(merge(words, asked), asked, 79.1, is_peer=True) == [2]


def test_an_unknown_option_of_a_peer_is_an_error() -> None:
    with pytest.raises(ValueError, match="a peer has no option speed; it has compile, attention, experts, loss, recompute, mode"):
        parse_peer(["speed=11"])


def test_initial_weights_are_alike_for_every_side() -> None:
    model = load(compose(False, [])).model
    for shape in param_shapes(model)[:4]:
        values = [initial_weight(shape, model, 1, torch.device("cpu")) for _ in range(2)]
        assert torch.equal(*values)
        assert values[0].shape == shape.shape


def test_a_hot_expert_takes_every_token_and_an_empty_one_none() -> None:
    _, ids_NK = skewed_experts(TINY, 64, torch.device("cpu"), hot=True)
    counts = torch.bincount(ids_NK.flatten(), minlength=TINY.n_experts)
    assert (counts[0], counts[1], counts.sum()) == (64, 0, 64 * TINY.top_k)


def test_documents_fill_their_rows() -> None:
    documents = documents_of(numbers_of(3, 50, 5, torch.device("cpu")))
    lengths = documents.offsets.diff()
    assert int((lengths > 0).sum()) == 15
    assert int(lengths.sum()) == 150


@pytest.mark.parametrize("model", ["olmoe_1b_7b", "olmo2_1b", "tiny_moe"])
def test_flops_of_the_groups_add_up(model: str) -> None:
    config = load(compose(True, [f"model={model}"])).model
    flops = group_flops(config, 4096)
    assert sum(flops.values()) == pytest.approx(flops_per_token(config, 4096))
    heads = config.n_heads * (config.d_model // config.n_heads)
    assert flops["attention"] == pytest.approx(12 * heads * config.n_layers * 4097 / 2)
