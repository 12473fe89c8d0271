"""Memory of one GPU in training, from the config alone; no torch. Phase by phase of a step; the fullest one counts."""

from dataclasses import dataclass, replace

from olmo_train.config.data import DataConfig
from olmo_train.config.dtypes import MomentType
from olmo_train.config.model import Norm
from olmo_train.config.optim import ParamKind
from olmo_train.config.train import TrainConfig
from olmo_train.model.activations import (
    BYTES,
    Activations,
    activations_of,
    backward_transients,
    forward_transients,
    kept_by_block,
    recomputed_by_block,
)
from olmo_train.model.shapes import ParamShape, param_shapes, vocab_rows

GIB = 2**30
CARDS = {"80 GB (H100)": 78 * GIB, "141 GB (H200)": 139 * GIB}
"""What a process can have of a card."""
RESERVE = 3 * 10**9
"""CUDA context, workspaces of cuBLAS and cuDNN, buffers of NCCL, compiled modules, fragmentation. Assumed, not measured."""
INT8_BLOCK = 256
"""Entries of a row of dim 0 that share a float32 scale (kernels/int8_states.py)."""
MUON_AT_WORK = 6 * 2**26
"""Elements, in bfloat16, that Muon orthogonalises with (optim/muon.py, BATCH_ELEMENTS)."""
LOGITS = {"gpu": 2**28, "cpu": 2**22}
"""Elements of a chunk of logits (kernels/cross_entropy.py)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. What stands from step to step, what a backward pass needs, and the phases of a step."""

    states: dict[str, int]
    """Weights, gradients, moments: this rank's shards."""
    kept: dict[str, int]
    """Activations of all blocks, by what they are, and what the loss keeps."""
    gathered: int
    """Whole weights that stay from the forward to the backward pass: embedding and output; blocks if they are not resharded."""
    phases: dict[str, dict[str, int]]
    """By phase of the step: everything that is held then."""

    @property
    def fullest(self) -> str:
        """The phase with the most bytes."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> int:
        """Bytes in that phase: what the allocator has given out, without the reserve."""
        return sum(self.phases[self.fullest].values())


def predict(run: TrainConfig, n_ranks: int, on_gpu: bool = True) -> Memory:
    """Memory of rank 0 of `n_ranks`. Sources: the code of model/, kernels/, parallel/fsdp.py, and torch's `_fsdp_collectives`."""
    step = _Step(run, n_ranks, on_gpu)
    kept: dict[str, int] = {}
    for layer in range(run.model.n_layers):
        for name, size in kept_by_block(run.model, layer, step.how).items():
            kept[name] = kept.get(name, 0) + size
    kept |= step.loss_kept
    return Memory(step.states, kept, step.standing(0)["gathered weights"], step.phases())


def largest_micro_batch(run: TrainConfig, n_ranks: int, room: int) -> int:
    """Tokens of the largest micro-batch, in whole sequences, whose peak is at most `room` bytes; 0 if not one fits."""

    def fits(sequences: int) -> bool:
        return predict(with_micro_batch(run, sequences), n_ranks).peak <= room

    low, high = 0, 1
    while high <= 1024 and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * run.data.seq_len


def with_micro_batch(run: TrainConfig, sequences: int) -> TrainConfig:
    """The run with another micro-batch."""
    data = DataConfig(**{**vars(run.data), "micro_batch_size": sequences * run.data.seq_len})
    return replace(run, data=data)


# ---- states ------------------------------------------------------------------------------------------------------------------


def sharded(shape: ParamShape, n_shards: int) -> int:
    """Elements of rank 0: FSDP2 cuts dim 0 like torch.chunk."""
    return -(-shape.shape[0] // n_shards) * (shape.size // shape.shape[0])


def moment_bytes(shape: ParamShape, n_shards: int, run: TrainConfig) -> int:
    """Of rank 0's part of one parameter: two moments with AdamW, one momentum for matrices with Muon."""
    elements = sharded(shape, n_shards)
    is_muon = run.optim.muon is not None and shape.kind == ParamKind.MATRIX
    if run.optim.moment_dtype == MomentType.INT8 and not is_muon and len(shape.shape) > 1:
        row = shape.size // shape.shape[0]
        per_moment = elements + 4 * (elements // row) * -(-row // INT8_BLOCK)
    else:
        per_moment = elements * (2 if run.optim.moment_dtype == MomentType.BFLOAT16 else 4)
    return per_moment if is_muon else 2 * per_moment


class _Step:
    """The sizes that the phases of a step are made of."""

    def __init__(self, run: TrainConfig, n_ranks: int, on_gpu: bool) -> None:
        self.run, self.on_gpu = run, on_gpu
        self.n_shards = run.parallel.shard_size or n_ranks
        self.how: Activations = activations_of(run, on_gpu)
        self.c, self.reduce = self.how.itemsize, BYTES[run.parallel.reduce_dtype]
        shapes = param_shapes(run.model)
        self.accumulates = run.data.global_batch_size > run.data.micro_batch_size * n_ranks
        # Of one micro-step nothing is added up: FSDP2 leaves gradients in the type of the weights.
        self.grad = BYTES[run.optim.grad_dtype if self.accumulates else run.optim.weight_dtype]
        self.is_alone = n_ranks == 1
        # One rank has no FSDP2: weights and gradients of the compute type stand whole (parallel/fsdp.py, `shard`).
        weight = BYTES[run.optim.weight_dtype]
        if self.is_alone and not (self.accumulates and self.grad == 4):
            self.grad = self.c
        elements = sum(sharded(s, self.n_shards) for s in shapes)
        self.states = {"weights": elements * weight}
        if self.is_alone and weight != self.c:
            self.states["weights to compute with"] = elements * self.c
        self.states |= {
            "gradients": elements * self.grad,
            "moments": sum(moment_bytes(s, self.n_shards, run) for s in shapes),
        }
        self.blocks = [sum(s.size for s in shapes if s.layer == layer) for layer in range(run.model.n_layers)]
        self.root = sum(s.size for s in shapes if s.layer is None)
        self.vocab = vocab_rows(run.model) * run.model.d_model
        self.holds_whole = self.accumulates and not run.parallel.reduce_every_micro_step and not self.is_alone
        n, d = self.how.n_tokens, run.model.d_model
        norm = 4 * n * d * (2 if run.model.norm == Norm.RMS and not on_gpu else 1)
        self.loss_kept = {"final norm, float32": norm, "gradients of the loss": self.c * n * d + 4 * self.vocab}

    def phases(self) -> dict[str, dict[str, int]]:
        """The candidates for the fullest phase. Each says everything that is held, so that it adds up."""
        last = self.run.model.n_layers - 1
        out = {
            "forward pass, last block": self._forward(last), "loss": self._loss(), "loss, backward": self._loss_backward(),
            "optimizer": dict(self.states),
        }  # fmt: skip
        if self.run.optim.muon is not None:
            out["optimizer"]["at work"] = 2 * MUON_AT_WORK
        for layer in (last, 0):
            out[f"backward pass, block {layer}"] = self._backward(layer)
            if not self.is_alone:
                out[f"gradient reduction, block {layer}"] = self._reduction(layer)
        return {name: {part: size for part, size in parts.items() if size} for name, parts in out.items()}

    def standing(self, blocks_done: int) -> dict[str, int]:
        """States, with the gradients that are there once `blocks_done` blocks, from the last, have been through their backward
        pass, and the gathered weights of the root."""
        n_layers = len(self.blocks)
        done = sum(self.blocks[n_layers - blocks_done :])
        grads = self.states["gradients"] if self.accumulates else done * self.grad // self.n_shards
        whole = 0
        if self.holds_whole:  # gradients are reduced at the end; until then they stand whole, in the type of the reduction
            whole, grads = (sum(self.blocks) + self.root) * max(self.reduce, self.c), 0
        gathered = 0 if self.is_alone else self.root * self.c
        if not self.run.parallel.reshard_after_forward and not self.is_alone:
            gathered += sum(self.blocks[: n_layers - blocks_done]) * self.c
        # FSDP2 frees the input of its last reduction, the root's, when the next one begins.
        has_input = self.accumulates and not self.holds_whole and not self.is_alone and not blocks_done
        return {
            **self.states, "gradients": grads, "gradients, whole": whole, "gathered weights": gathered,
            "reduction": self.root * self.reduce if has_input else 0,
        }  # fmt: skip

    def _activations(self, n_blocks: int) -> int:
        return sum(sum(kept_by_block(self.run.model, layer, self.how).values()) for layer in range(n_blocks))

    def _gathered(self, layer: int, buffers: int) -> int:
        """Of a block at work, and of flat `buffers` of blocks that are on their way, or were copied out of just now."""
        here = self.blocks[layer] * self.c if self.run.parallel.reshard_after_forward and not self.is_alone else 0
        return here + (buffers * self.blocks[layer] * self.c if self.n_shards > 1 else 0)

    def _ahead(self, layer: int) -> int:
        """Blocks still to come in the backward pass whose weights are on their way."""
        return min(layer, self.run.parallel.prefetch) if self.run.parallel.reshard_after_forward else 0

    def _forward(self, layer: int) -> dict[str, int]:
        parts = self.standing(0)
        # A block's flat buffer is freed by the copy out of the next one; the last block has no next one to fetch.
        parts["gathered weights"] += self._gathered(layer, buffers=1)
        parts["activations"] = self._activations(layer + 1)
        parts["at work"] = forward_transients(self.run.model, layer, self.how)
        return parts

    def _loss(self) -> dict[str, int]:
        parts = self.standing(0)
        parts["activations"] = self._activations(len(self.blocks)) + sum(self.loss_kept.values())
        chunk = min(LOGITS["gpu" if self.on_gpu else "cpu"], self.how.n_tokens * vocab_rows(self.run.model))
        # Triton and quack: logits in the compute type, and a product to add to dw. Plain torch: float32 beside them.
        per_logit = self.c if self.on_gpu else 2 * self.c + 4
        parts["at work"] = chunk * per_logit + self.c * self.vocab + self.how.n_tokens * self.c * self.run.model.d_model
        return parts

    def _loss_backward(self) -> dict[str, int]:
        """dw of the output projection in the weights' type, and dx in float32 and in its own."""
        parts = self.standing(0)
        parts["activations"] = self._activations(len(self.blocks)) + sum(self.loss_kept.values())
        parts["at work"] = self.c * self.vocab + self.how.n_tokens * (4 + self.c) * self.run.model.d_model
        return parts

    def _backward(self, layer: int) -> dict[str, int]:
        """In the feed-forward of a block: its weights' gradients are there, its activations still too."""
        done = len(self.blocks) - 1 - layer
        parts = self.standing(done)
        parts["gathered weights"] += self._gathered(layer, self._ahead(layer))
        parts["activations"] = self._activations(layer + 1) + recomputed_by_block(self.run.model, layer, self.how)
        parts["gradients of a block"] = self.blocks[layer] * self.c + self._root_gradients()
        # The reduction of the block above has its input until this block's begins.
        if done and not self.holds_whole and not self.is_alone:
            parts["reduction"] = self.blocks[layer] * self.reduce
        parts["at work"] = backward_transients(self.run.model, layer, self.how)
        return parts

    def _reduction(self, layer: int) -> dict[str, int]:
        """Behind a block: its activations are gone, its gradients are copied into the buffer of the reduction."""
        parts = self.standing(len(self.blocks) - 1 - layer)
        parts["gathered weights"] += self._gathered(layer, self._ahead(layer)) - self._gathered(layer, 0)
        parts["activations"] = self._activations(layer)
        parts["gradients of a block"] = self.blocks[layer] * self.c + self._root_gradients()
        if not self.holds_whole:
            # The earlier one's input is freed now. Without other ranks torch divides the buffer into another and copies that.
            copies = self.blocks[layer] * self.reduce * (2 if self.n_shards == 1 else 1)
            parts["reduction"] = copies + self.blocks[layer] * self.reduce // self.n_shards
        return parts

    def _root_gradients(self) -> int:
        """Of the output projection, from the loss on; reduced with the embedding's at the very end. Alone: added up at once."""
        return 0 if self.is_alone and self.accumulates else self.vocab * self.c
