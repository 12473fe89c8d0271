"""Documents left out: what rows hold then, what training learns then, and what cannot be left out."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from olmo_train.config.data import DataConfig, RepetitionMaskConfig, SourceConfig, WithoutConfig
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import IGNORE, Loader, Rows, open_sources
from olmo_train.data.order import DataOrder
from olmo_train.data.shards import Corpus, ShardWriter, WriterOptions
from olmo_train.errors import ConfigError
from olmo_train.kernels.choose import REFERENCE
from olmo_train.model.init import init_params
from olmo_train.model.losses import load_balancing_loss, router_z_loss
from olmo_train.model.shapes import param_shapes
from olmo_train.model.transformer import Losses, Transformer
from olmo_train.optim.schedule import multiplier
from olmo_train.schema import load_config, read_yaml
from olmo_train.train import find_all_problems
from tests.corpora import EOS, VOCAB, Spec, write_corpus
from tests.runs import losses, metrics, run_training, small, weights, without_times

T, ROWS = 16, 8


def loader_of(shards: Path, without: WithoutConfig | None, ranks: tuple[int, int] = (0, 1), **values: object) -> Loader:
    config = DataConfig({"all": SourceConfig(path=str(shards))}, T, T * ROWS, T * 2, without=without, **values)  # type: ignore[arg-type]
    return Loader(DataOrder(open_sources(config, Path()), 1, T, T * ROWS), config, *ranks)


def seen_documents(loader: Loader, step: int) -> list[str]:
    """Ids of the documents in a step, in order, each once."""
    spans = (span for instance in loader.order.batch(step) for span in loader.order.documents(instance))
    return list(dict.fromkeys(span.file.index.row(span.ordinal).id for span in spans))


def ledger(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


def naive(loader: Loader, step: int, rows: Rows, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(ids, labels) from the rows as they are: cell by cell, asking the order which document each token is of."""
    out, labels = rows.ids.copy(), rows.labels.copy()
    for instance in loader.order.batch(step):
        for span in loader.order.documents(instance):
            if span.file.index.row(span.ordinal).id in ids:
                for column in range(span.column_start, span.column_end):
                    out[instance.row, column] = EOS
                    if column > 0:
                        labels[instance.row, column - 1] = IGNORE
    return out, labels


@pytest.mark.parametrize("is_masking", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_tokens_of_a_left_out_document_are_neither_input_nor_target(shards: Path, seed: int, is_masking: bool) -> None:
    mask = RepetitionMaskConfig(1, 3, 4)
    whole = loader_of(shards, None, document_masking=is_masking, repetition_mask=mask)
    step = seed + 1
    there = seen_documents(whole, step)
    ids = np.random.default_rng(seed).permutation(there)[: 1 + 2 * seed].tolist()
    without = loader_of(shards, WithoutConfig(ids), document_masking=is_masking, repetition_mask=mask)
    before, after = whole.read(step), without.read(step)
    expected_ids, expected_labels = naive(whole, step, before, ids)
    assert np.array_equal(after.ids, expected_ids)
    assert np.array_equal(after.labels, expected_labels)
    assert (after.n_targets, (after.labels != IGNORE).sum()) == (before.n_targets, (expected_labels != IGNORE).sum())
    assert np.array_equal(after.masked, before.masked)  # though what is left may repeat itself, and end-of-text does
    if is_masking:
        assert after.documents is not None
        assert before.documents is not None
        assert np.array_equal(after.documents, before.documents)
    assert after.without is not None
    assert before.without is None
    assert after.without.sum(0).tolist() == [
        (whole_rows_of(whole, step, ids)).sum(),
        (before.labels != IGNORE).sum() - (expected_labels != IGNORE).sum(),
    ]
    part = after.slice(2, 5)
    assert part.n_targets == before.slice(2, 5).n_targets


def whole_rows_of(loader: Loader, step: int, ids: list[str]) -> np.ndarray:
    """Tokens of the documents in each row of a step."""
    counts = np.zeros(ROWS, int)
    for instance in loader.order.batch(step):
        for span in loader.order.documents(instance):
            if span.file.index.row(span.ordinal).id in ids:
                counts[instance.row] += span.column_end - span.column_start
    return counts


def test_what_comes_after_the_document_is_still_predicted(tmp_path: Path) -> None:
    """Row: a a a 0 | b b 0 | c ...: without b, its three tokens are no targets, and c's first one still is."""
    with ShardWriter(tmp_path / "x", WriterOptions("uint16", VOCAB, EOS)) as writer:
        for name, ids in (("a", [11, 12, 13, 0]), ("b", [21, 22, 0]), ("c", np.arange(31, 31 + T * ROWS).tolist())):
            writer.add("s", (name, "f", 1), np.array(ids) % VOCAB, 1)
        writer.close()
    loader = loader_of(tmp_path / "x", WithoutConfig(["b"]))
    step, row = next((i.step, i.row) for s in (1, 2) for i in loader.order.batch(s) if i.pieces[0].start == 0)
    rows = loader.read(step)
    assert rows.ids[row, :9].tolist() == [11, 12, 13, 0, 0, 0, 0, 31, 32]
    assert rows.labels[row, :9].tolist() == [12, 13, 0, IGNORE, IGNORE, IGNORE, 31, 32, 33]
    assert rows.without is not None
    assert rows.without[row].tolist() == [3, 3]


def test_the_repetition_mask_is_that_of_the_run_with_the_document(shards: Path) -> None:
    mask = RepetitionMaskConfig(1, 3, 4)
    whole = loader_of(shards, None, repetition_mask=mask)
    step = next(step for step in range(1, 100) if whole.read(step).masked.any())
    without = loader_of(shards, WithoutConfig(seen_documents(whole, step)), repetition_mask=mask)
    before, after = whole.read(step), without.read(step)
    assert (after.ids == EOS).all()  # what repeated itself is gone, and all rows repeat end-of-text
    assert np.array_equal(after.masked, before.masked)
    assert after.without is not None
    assert after.without[before.masked, 1].tolist() == [0] * before.masked.sum()  # they were no targets before
    assert after.n_targets == before.n_targets


def test_ranks_share_out_the_same_rows(shards: Path) -> None:
    whole = loader_of(shards, None)
    without = WithoutConfig(seen_documents(whole, 2)[:3])
    one = loader_of(shards, without).read(2)
    parts = [loader_of(shards, without, (rank, 2)).read(2) for rank in range(2)]
    assert np.array_equal(np.concatenate([part.ids for part in parts]), one.ids)
    assert np.array_equal(np.concatenate([part.labels for part in parts]), one.labels)
    assert sum(part.checksum(4 * rank) for rank, part in enumerate(parts)) % 2**62 == one.checksum(0)


def test_steps_up_to_the_named_one_see_everything(shards: Path) -> None:
    whole = loader_of(shards, None)
    loader = loader_of(shards, WithoutConfig([*seen_documents(whole, 2)[:1], *seen_documents(whole, 3)[:1]], after_step=2))
    assert np.array_equal(loader.read(2).ids, whole.read(2).ids)
    assert loader.read(2).without is None
    assert not np.array_equal(loader.read(3).ids, whole.read(3).ids)


# ---- training ---------------------------------------------------------------------------------------------------------------

LOUD = ["model.moe.load_balancing_loss_weight=0.5", "model.moe.router_z_loss_weight=0.1", "optim.skip=null"]


def order_of(overrides: list[str]) -> tuple[TrainConfig, Loader]:
    run = load_config("train", TrainConfig, overrides)
    order = DataOrder(open_sources(run.data, Path()), run.seed, run.data.seq_len, run.data.global_batch_size)
    run.data.without = None
    return run, Loader(order, run.data, 0, 1)


def plain_losses(overrides: list[str], ids: list[str], n_steps: int) -> list[float]:
    """Losses of the definition: plain PyTorch on the rows as they were, cells exchanged, the sum divided by the same count."""
    run, loader = order_of(overrides)
    model = Transformer(run.model, REFERENCE)
    init_params(model, param_shapes(run.model), run.model, run.seed)
    kinds = {s.name: s.kind for s in param_shapes(run.model)}
    groups = [
        {"params": [p for n, p in model.named_parameters() if (kinds[n] in run.optim.no_decay) == exempt], "weight_decay": decay}
        for exempt, decay in ((False, run.optim.weight_decay), (True, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(run.optim.beta1, run.optim.beta2), eps=run.optim.eps)
    found, moe = [], run.model.moe
    assert moe is not None
    for step in range(1, n_steps + 1):
        rows = loader.read(step)
        inputs, labels = (torch.from_numpy(array) for array in naive(loader, step, rows, ids))
        out = model(inputs, labels)
        assert isinstance(out, Losses)
        assert out.router is not None
        n = inputs.numel()
        total = out.loss / rows.n_targets
        total = total + moe.load_balancing_loss_weight * load_balancing_loss(out.router.counts, out.router.probs, n, n, moe.top_k)
        total = total + moe.router_z_loss_weight * router_z_loss(out.router.z, n)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.optim.max_grad_norm or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = (run.optim.lr or 0) * multiplier(run.optim.schedule, step * run.data.global_batch_size, run.max_tokens)
        optimizer.step()
        found.append(float(out.cross_entropy) / rows.n_targets)
    return found


@pytest.fixture(scope="module")
def words(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Overrides of a run of five steps, and ids of documents that it sees in step 2 and not in step 1."""
    overrides = small(shards, tmp_path_factory.mktemp("run") / "run", "max_tokens=1280", *LOUD)
    _, loader = order_of(overrides)
    return overrides, [d for d in seen_documents(loader, 2) if d not in seen_documents(loader, 1)][:4]


def ran(words: tuple[list[str], list[str]], folder: Path, *more: str, n_ranks: int = 1) -> Path:
    overrides = [w for w in words[0] if not w.startswith(("run_dir=", "run_name="))]
    run_training([*overrides, f"run_dir={folder}", f"run_name={folder.name}", *more], n_ranks)
    return folder


def test_training_without_documents_is_plain_pytorch_without_them(words: tuple[list[str], list[str]], tmp_path: Path) -> None:
    more = f"data.without.documents={json.dumps(words[1])}"
    expected = plain_losses(words[0], words[1], 5)
    real = plain_losses(words[0], [], 5)
    assert expected[0] == real[0]
    assert expected[1] != pytest.approx(real[1], rel=1e-3)
    for n_ranks in (1, 2):
        run = ran(words, tmp_path / f"ranks{n_ranks}", more, n_ranks=n_ranks)
        assert losses(run) == pytest.approx(expected, rel=1e-5)
        assert [line["targets"] for line in metrics(run)] == [16 * 15] * 5
    one, two = (ledger(tmp_path / f"ranks{n}") for n in (1, 2))
    assert one == two
    _, loader = order_of(words[0])
    for line in one:
        step = int(line["step"])  # type: ignore[call-overload]
        changed = {i.row for i in loader.order.batch(step) for s in loader.order.documents(i) if s.file.index.row(s.ordinal).id in words[1]}  # fmt: skip
        assert line["without_rows"] == sorted(changed)
    saved = read_yaml(tmp_path / "ranks2/steps/step00000005/config.yaml", TrainConfig)
    assert saved.data.without == WithoutConfig(words[1])


def test_a_document_that_no_step_comes_to_changes_nothing(words: tuple[list[str], list[str]], tmp_path: Path) -> None:
    _, loader = order_of(words[0])
    seen = {d for step in range(1, 6) for d in seen_documents(loader, step)}
    (source,) = loader.order.sources
    unseen = next(
        row.id
        for file in source.files
        for ordinal in range(file.entry.documents)
        if (row := file.index.row(ordinal)).id not in seen and file.index.train_position(row.start) is not None
    )
    real = ran(words, tmp_path / "real")
    other = ran(words, tmp_path / "other", f"data.without.documents=['{unseen}']")
    assert weights(other, 5) == weights(real, 5)
    assert without_times(metrics(other)) == without_times(metrics(real))
    told = ledger(other)
    assert [line.pop("without_rows") for line in told] == [[]] * 5
    assert told == ledger(real)


def test_after_step_begins_to_leave_out_where_it_says(words: tuple[list[str], list[str]], tmp_path: Path) -> None:
    real = ran(words, tmp_path / "real", "stop_at_step=3")
    late = f"data.without={{documents: {json.dumps(words[1])}, after_step: 1}}"
    other = ran(words, tmp_path / "other", late, "stop_at_step=3")
    assert losses(other)[0] == losses(real)[0]
    assert losses(other)[1] != losses(real)[1]  # the loss of step 2 is of what step 2 was fed
    first, second, _ = ledger(other)
    assert ("without_rows" in first, bool(second["without_rows"])) == (False, True)
    state = json.loads((other / "steps/step00000003/state.json").read_text())
    assert state["data"]["without"] == {"documents": words[1], "after_step": 1}


# ---- resuming ---------------------------------------------------------------------------------------------------------------


def test_a_run_cannot_go_on_without_what_it_saw(words: tuple[list[str], list[str]], tmp_path: Path) -> None:
    folder = ran(words, tmp_path / "run", "stop_at_step=2")
    more = f"data.without.documents={json.dumps(words[1])}"
    with pytest.raises(AssertionError, match=r"data\.without\.\w+=.*, but .*run began with None; restore it, or start another"):
        ran(words, folder, more)


def test_a_config_edited_by_hand_is_found_by_the_step_folder(words: tuple[list[str], list[str]], tmp_path: Path) -> None:
    folder = ran(words, tmp_path / "run", "stop_at_step=2", f"data.without.documents={json.dumps(words[1])}")
    (folder / "config.yaml").unlink()
    with pytest.raises(
        AssertionError,
        match=r"data\.without: the steps up to 2 of .*step00000002 left out \{.*'after_step': 0\}, by the config it is None; "
        r"restore it, or set data\.without\.after_step so that it tells what those steps did",
    ):
        ran(words, folder)


def test_a_run_without_documents_resumes_to_the_undisturbed_one(words: tuple[list[str], list[str]], tmp_path: Path) -> None:
    more = f"data.without={{documents: {json.dumps(words[1])}, after_step: 3}}"
    whole = ran(words, tmp_path / "whole", more)
    cut = ran(words, tmp_path / "cut", more, "stop_at_step=2")  # before the first step that leaves something out
    ran(words, cut, more, "stop_at_step=4")
    ran(words, cut, more)
    assert weights(cut, 5) == weights(whole, 5)
    assert ledger(cut) == ledger(whole)


# ---- what cannot be left out ------------------------------------------------------------------------------------------------


def problems_of(shards: Path, tmp_path: Path, word: str, *more: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_config("train", TrainConfig, small(shards, tmp_path / "run", word, *more), find_all_problems)
    return raised.value.problems


def test_ids_that_are_nobodys_are_told(shards: Path, tmp_path: Path) -> None:
    (problem,) = problems_of(shards, tmp_path, "data.without.documents=[nobody, a/0, nothing]")
    assert problem == ("data.without.documents: no source has a document 'nobody', 'nothing'; give ids as the `.csv.gz` has them")
    many = json.dumps([f"x{n}" for n in range(12)])
    (problem,) = problems_of(shards, tmp_path, f"data.without.documents={many}")
    assert "'x9' and 2 more; give" in problem
    (problem,) = problems_of(shards, tmp_path, "data.without.documents=[a/0]", "data.sources.demo.select=b")
    assert "no source has a document 'a/0'" in problem


def test_ids_of_held_out_documents_are_told(shards: Path, tmp_path: Path) -> None:
    heldout = next(
        row.id
        for file in Corpus(shards).files
        for ordinal in range(file.entry.documents)
        if file.index.train_position((row := file.index.row(ordinal)).start) is None
    )
    assert problems_of(shards, tmp_path, f"data.without.documents=['{heldout}']") == [
        f"data.without.documents: held out, so no step sees them anyway: '{heldout}'; take them out of the list"
    ]


def test_an_empty_list_and_a_step_outside_the_run_are_told(shards: Path, tmp_path: Path) -> None:
    assert problems_of(shards, tmp_path, "data.without={documents: [], after_step: 10}") == [
        "data.without.documents is empty; give ids of documents, or data.without=null",
        "data.without.after_step=10, but the run ends after step 10, so nothing would be left out; give an earlier step",
    ]
    (problem,) = problems_of(shards, tmp_path, "data.without={documents: [a/0], after_step: -1}")
    assert problem == "data.without.after_step=-1 must not be negative"


def test_shards_without_an_end_of_text_id_are_told(tmp_path: Path) -> None:
    write_corpus(tmp_path / "x", Spec(n_documents=20, heldout_frac=0))
    from olmo_train.data.manifest import read_manifest, write_manifest

    manifest = read_manifest(tmp_path / "x")
    manifest.eos_id = None
    write_manifest(tmp_path / "x", manifest)
    with pytest.raises(ConfigError) as raised:
        loader_of(tmp_path / "x", WithoutConfig(["a/0"]))
    (problem,) = raised.value.problems
    assert problem.startswith("data.without: the manifest of ")
    assert problem.endswith(
        "a/part-00000.npy has no end-of-text id (eos_id=null), which takes the place of what is left out; write it again with "
        "`olmo data manifest ... eos_id=ID`"
    )


def test_damaged_indexes_are_told_before_anything_is_built(shards: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "x", Spec(n_documents=20, heldout_frac=0))
    for file in (tmp_path / "x/index").rglob("*.ids.idx"):
        file.write_bytes(b"nonsense")
    problems = problems_of(tmp_path / "x", tmp_path, "data.without.documents=[a/0]")
    assert any("document index cannot be read" in problem for problem in problems)
