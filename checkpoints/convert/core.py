"""Import of OLMo-core checkpoints (`step{N}/config.json`, `model_and_optim/.metadata` and `*.distcp`), by OLMo-core itself.

Their `.metadata` is a pickle, which can execute code: open only checkpoints of people you trust.
"""

import os
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from olmo_train.config.model import ModelConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.model.shapes import param_shapes

FOLDER = "model_and_optim"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW, there and here."""

# Our name after `blocks.{i}.` (or the whole name) -> theirs; several are concatenated along rows.
_WHOLE = {
    "embedding.weight": ["embeddings.weight"],
    "norm.weight": ["lm_head.norm.weight"],
    "lm_head.weight": ["lm_head.w_out.weight"],
}
_LAYER = {
    "attention.w_qkv.weight": ["attention.w_q.weight", "attention.w_k.weight", "attention.w_v.weight"],
    "attention.w_out.weight": ["attention.w_out.weight"],
    "attention.q_norm.weight": ["attention.q_norm.weight"],
    "attention.k_norm.weight": ["attention.k_norm.weight"],
    "attention_norm.weight": ["attention_norm.weight"],
    "feed_forward.w_in.weight": ["feed_forward.w1.weight", "feed_forward.w3.weight"],
    "feed_forward.w_out.weight": ["feed_forward.w2.weight"],
    "feed_forward_norm.weight": ["feed_forward_norm.weight"],
    "moe.router.weight": ["feed_forward_moe.router.weight"],
    "moe.w_in": ["feed_forward_moe.experts.mlp.w1", "feed_forward_moe.experts.mlp.w3"],
    "moe.w_out": ["feed_forward_moe.experts.mlp.w2"],
}  # fmt: skip


def is_core_folder(folder: Path) -> bool:
    """Whether a folder is a checkpoint of OLMo-core."""
    return (folder / FOLDER / ".metadata").exists()


def core_facts(folder: Path, values: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """(tokens trained on at a time, {step, tokens} as far as they are known), from the folder's name and its config.json."""
    sections = {name: values.get(name) or {} for name in ("dataset", "train_module", "data_loader")}
    seq_len = sections["dataset"].get("sequence_length") or sections["train_module"].get("max_sequence_length") or 2048
    digits, batch = folder.name.removeprefix("step"), sections["data_loader"].get("global_batch_size")
    if not digits.isdigit():
        return int(seq_len), {}
    return int(seq_len), {"step": int(digits)} | ({"tokens": int(digits) * int(batch)} if batch else {})


class CoreWeights:
    """The parameters of an OLMo-core checkpoint (see `weights.Weights`), or one of its moments. Holds one tensor."""

    def __init__(self, folder: Path, model: ModelConfig, moment: str | None = None) -> None:
        """Raises:
        ConfigError: OLMo-core is not installed. CheckpointError: the folder has no such tensors.
        """
        self.folder = folder / FOLDER
        self._store, self._key = CoreStore(self.folder), f"optim.state.{{}}.{moment}" if moment else "model.{}"
        self.shapes: dict[str, tuple[int, ...]] = {shape.name: shape.shape for shape in param_shapes(model)}
        self._whole = lru_cache(maxsize=1)(self._load)
        problems = []
        for name, shape in self.shapes.items():
            sizes = [self._store.tensors.get(key) for key in self._keys(name)]
            if None in sizes:
                problems.append(f"{self._keys(name)[sizes.index(None)]} is missing")
            elif sum(size[0].numel() for size in sizes if size is not None) != torch.Size(shape).numel():
                problems.append(f"{self._keys(name)[0]} has another size than its config.json says")
        if problems:
            raise CheckpointError(
                f"{self.folder}: {'; '.join(problems[:3])} ({len(problems)} problems); the checkpoint is not whole"
            )

    def _keys(self, name: str) -> list[str]:
        if name in _WHOLE:
            return [self._key.format(theirs) for theirs in _WHOLE[name]]
        _, layer, ours = name.split(".", 2)
        return [self._key.format(f"blocks.{layer}.{theirs}") for theirs in _LAYER[ours]]

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        return self._store.tensors[self._keys(name)[0]][1]

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Rows of a tensor; None: all. The whole tensor is read, and kept until another one is asked for."""
        whole = self._whole(name)
        return whole if rows is None else whole[slice(*rows)]

    def _load(self, name: str) -> Tensor:
        self._whole.cache_clear()  # before the next one is read: only one is ever alive
        shape, parts = self.shapes[name], self._store.load(self._keys(name))
        if name.endswith("moe.w_in"):  # rows of all experts one after the other, in both
            return torch.cat([part.view(shape[0], shape[1] // 2, shape[2]) for part in parts], 1)
        if name.endswith("moe.w_out"):
            return parts[0].view(shape[0], shape[2], shape[1]).transpose(1, 2).contiguous()
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(shape)


class CoreStore:
    """The tensors of a distributed checkpoint by their key."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        ConfigError: OLMo-core is not installed. CheckpointError: the metadata cannot be read.
        """
        self.folder = folder
        need_olmo_core(folder)
        from olmo_core.distributed.checkpoint import get_checkpoint_metadata

        try:
            metadata = get_checkpoint_metadata(folder).state_dict_metadata
        except Exception as error:  # whatever its pickle raises
            raise CheckpointError(f"{folder}/.metadata cannot be read: {error}; copy the checkpoint again") from error
        self.keys = set(metadata)
        self.tensors: Mapping[str, tuple[torch.Size, torch.dtype]] = {
            key: (entry.size, entry.properties.dtype) for key, entry in metadata.items() if hasattr(entry, "properties")
        }

    def load(self, keys: list[str]) -> list[Any]:
        """The values of some keys, whole: tensors, or the numbers of a parameter group.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        values: dict[str, Any] = {
            key: torch.empty(self.tensors[key][0], dtype=self.tensors[key][1]) if key in self.tensors else 0.0 for key in keys
        }
        from olmo_core.distributed.checkpoint import load_state_dict
        from torch.distributed.checkpoint.api import CheckpointException  # here: its import takes most of a second

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is only one process
            try:
                load_state_dict(self.folder, values)
            except (CheckpointException, Exception) as error:  # torch's is not even an Exception
                reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
                raise CheckpointError(f"{self.folder}: {keys[0]} cannot be read: {reason}; copy the checkpoint again") from error
        return [values[key] for key in keys]


def optimizer_of(folder: Path, model: ModelConfig) -> tuple[dict[str, CoreWeights], int, float] | str:
    """(moments by their name, updates taken, learning rate) of AdamW; or why they cannot be taken over.

    Raises:
        CheckpointError: a file is damaged.
    """
    store = CoreStore(folder / FOLDER)
    steps = [key for key in store.tensors if key.startswith("optim.state.") and key.endswith(".step")]
    rates = sorted(key for key in store.keys if key.startswith("optim.param_groups.") and key.endswith(".lr"))
    if not steps or not rates:
        return "the checkpoint has no state of AdamW"
    try:
        moments = {moment: CoreWeights(folder, model, moment) for moment in MOMENTS}
    except CheckpointError as error:
        return f"its optimizer is not AdamW over all parameters: {error}"
    taken = {int(step) for step in store.load(steps)}
    if len(taken) > 1:
        return f"its parameters were updated between {min(taken)} and {max(taken)} times, ours all equally often"
    return moments, taken.pop(), float(store.load(rates[:1])[0])


def need_olmo_core(where: Path) -> None:
    """Import OLMo-core; on its first import it changes the environment (Triton's cache), which is put back.

    Raises:
        ConfigError: it is not installed.
    """
    before = dict(os.environ)
    os.environ["OLMO_DISABLE_PER_RANK_TRITON_CACHE"] = "1"
    try:
        import olmo_core.distributed.checkpoint  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{where} is a checkpoint of OLMo-core, and {error.name} is not installed; pip install 'olmo-train[core]'"
        ) from None
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
