"""`olmo size`: the table, its JSON, its errors."""

import json

import pytest

from olmo_train.errors import ConfigError
from olmo_train.model.size import main

OLMOE = ["model=olmoe_1b_7b", "data=olmoe_mix", "optim=olmoe", "parallel=fsdp"]


def test_the_table_names_states_activations_cards_and_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    main(OLMOE)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "6,919,161,856" in lines[0]
    assert any(line.startswith("weights ") and line.endswith(" 27.68") for line in lines)
    assert any(line.strip().startswith("expert pre-activations") and line.endswith(" 8.59") for line in lines)
    assert "80 GB (H100): does not fit" in out
    assert "predicted to fit with 4 % to spare, nearest to float32: optim.weight_dtype=bfloat16" in out
    assert "predicted to fit with 4 % to spare, nearest to float32: optim.weight_dtype=float32" in out


def test_ranks_share_the_states(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--ranks", "8", *OLMOE])
    assert "memory of one GPU of 8, 8 to a copy of the weights, micro-batches of 4 x 4096 tokens" in capsys.readouterr().out
    main(["--ranks", "16", *OLMOE, "parallel.shard_size=8"])
    assert "memory of one GPU of 16, 8 to a copy" in capsys.readouterr().out


def test_json_holds_the_same_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--json", "--ranks", "8", *OLMOE])
    got = json.loads(capsys.readouterr().out)
    assert got["params"]["total"] == 6_919_161_856
    assert got["states"] == {"weights": 3459580928, "gradients": 3459580928, "moments": 6919161856}
    assert got["peak"] == sum(got["phases"][got["fullest"]].values())
    assert got["cards"]["80 GB (H100)"]["fits"]
    assert got["cards"]["80 GB (H100)"]["recipe"]["words"][0] == "optim.weight_dtype=float32"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--ranks", "0", *OLMOE], "--ranks=0 must be at least 1"),
        (
            ["--ranks", "12", *OLMOE, "parallel.shard_size=8"],
            "parallel.shard_size=8 does not divide --ranks=12; change one",
        ),
        (
            [*OLMOE, "data.micro_batch_size=10000"],
            "data.micro_batch_size=10000 is not a multiple of data.seq_len=4096; nearest: 8192",
        ),
    ],
)
def test_what_cannot_be_is_said(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        main(argv)
    assert message in error.value.problems
