"""A checkpoint as one GGUF file, which llama.cpp and what is built on it load: config, tokenizer and weights.

Architectures `olmoe`, `olmo2` (also OLMo-3) and `olmo`. What llama.cpp would compute otherwise is refused.
"""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.convert.gguf_tokenizer import Vocabulary, read_vocabulary
from checkpoints.hf_names import hf_model_type
from checkpoints.opening import Checkpoint
from checkpoints.weights import Weights
from olmo_train.config.model import ModelConfig, NormOrder
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.model.shapes import ParamShape, d_head, n_kv_heads, param_shapes, stacked_rows, vocab_rows

log = logging.getLogger(__name__)
QUANTIZATIONS = ("f32", "bf16", "f16", "q8_0")
CHUNK_BYTES = 64 * 2**20
"""Of float32 values held at a time, where a tensor can be read in parts."""
ALIGNMENT = 32
"""Of tensors in the file. Source: GGUF specification, general.alignment."""
Q8_BLOCK = 32
"""Values that share a scale in q8_0; rows must be a multiple of it."""
FLOAT16_MAX = 65504.0

# Our name after `blocks.{i}.` (or the whole name) -> llama.cpp's after `blk.{i}.`, one for each stacked matrix.
_WHOLE = {"embedding.weight": "token_embd", "norm.weight": "output_norm", "lm_head.weight": "output"}
_LAYER = {
    "attention.w_qkv.weight": ("attn_q", "attn_k", "attn_v"), "attention.w_out.weight": ("attn_output",),
    "attention.q_norm.weight": ("attn_q_norm",), "attention.k_norm.weight": ("attn_k_norm",),
    "feed_forward.w_in.weight": ("ffn_gate", "ffn_up"), "feed_forward.w_out.weight": ("ffn_down",),
    "moe.router.weight": ("ffn_gate_inp",), "moe.w_in": ("ffn_gate_exps", "ffn_up_exps"), "moe.w_out": ("ffn_down_exps",),
}  # fmt: skip
_NORMS = {
    NormOrder.PRE: {"attention_norm.weight": ("attn_norm",), "feed_forward_norm.weight": ("ffn_norm",)},
    NormOrder.POST: {"attention_norm.weight": ("post_attention_norm",), "feed_forward_norm.weight": ("post_ffw_norm",)},
}


@dataclass(frozen=True)
class Part:
    """One tensor of the file: rows [start, stop) of one of ours (of each expert, where ours is stacked)."""

    name: str
    source: str
    shape: tuple[int, ...]
    start: int
    stop: int
    interleave: int = 0
    """Width of a head whose halves are interleaved, as llama.cpp's other rotation wants them (OLMo-1); 0: none."""
    number_format: str = "f32"


def write_gguf(checkpoint: Checkpoint, path: Path, quantization: str) -> None:
    """Write `path`. Holds one tensor at a time: CHUNK_BYTES of it, or one expert, or the rows of q.

    Matrices are written as `quantization` (f32, bf16, f16, q8_0), norms and routers as f32; under q8_0 a matrix whose rows are
    no multiple of 32 is written as f16.

    Raises:
        ConfigError: llama.cpp cannot load this model or would compute something else; `path` exists; a weight is too large for
        the format. CheckpointError: the checkpoint is not whole, or the disk is full.
    """
    problems = find_gguf_problems(checkpoint, path, quantization)
    if problems:
        raise ConfigError(problems)
    assert checkpoint.tokenizer is not None  # find_gguf_problems
    vocabulary = read_vocabulary(checkpoint.tokenizer, vocab_rows(checkpoint.model))
    if vocabulary.is_normalizing:
        log.warning("%s brings text to NFC and llama.cpp does not: give it text in NFC", checkpoint.tokenizer)
    parts = file_parts(checkpoint.model, quantization)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_header(checkpoint, vocabulary, parts, quantization, temporary)
            _append_tensors(checkpoint.weights, parts, temporary)
            os.rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; free space or choose another place") from error


# ---- what stands against it ------------------------------------------------------------------------------------------------


def find_gguf_problems(checkpoint: Checkpoint, path: Path, quantization: str) -> list[str]:
    """Every reason why `write_gguf` cannot work; reads no weights."""
    problems = []
    try:
        import gguf  # noqa: F401
    except ImportError:
        problems.append("GGUF needs the package gguf, which is not installed; pip install 'olmo-train[gguf]'")
    if quantization not in QUANTIZATIONS:
        problems.append(f"quantization {quantization} is not one of {', '.join(QUANTIZATIONS)}")
    if path.exists():
        problems.append(_exists(path))
    problems += find_model_problems(checkpoint.model)
    if checkpoint.tokenizer is None:
        problems.append(f"{checkpoint.where}: no tokenizer is known, and a GGUF file holds one; give --tokenizer tokenizer.json")
        return problems
    try:
        read_vocabulary(checkpoint.tokenizer, vocab_rows(checkpoint.model))
    except ConfigError as error:
        problems += error.problems
    return problems


def find_model_problems(model: ModelConfig) -> list[str]:
    """What llama.cpp cannot load or would silently compute otherwise. Source: llama.cpp, src/models/olmo{,2,e}.cpp."""
    try:
        kind = hf_model_type(model)
    except ConfigError as error:  # llama.cpp's are made after the classes of transformers
        return [f"{problem}, nor does llama.cpp" for problem in error.problems]
    reasons = []
    if model.moe is not None and model.moe.normalize_top_k:
        reasons.append("model.moe.normalize_top_k=true: llama.cpp's olmoe does not divide the gates by their sum")
    if kind == "olmoe" and n_kv_heads(model) != model.n_heads:
        reasons.append(f"model.n_kv_heads={model.n_kv_heads}: llama.cpp's olmoe has as many as n_heads={model.n_heads}")
    if kind == "olmoe" and model.clip_qkv is not None:
        reasons.append(f"model.clip_qkv={model.clip_qkv}: llama.cpp's olmoe does not clamp")
    if d_head(model) * model.n_heads != model.d_model:
        reasons.append(f"model.d_head={model.d_head}: llama.cpp's {kind} has d_model / n_heads")
    return [f"{reason}; convert to a Hugging Face folder instead" for reason in reasons]


def _exists(path: Path) -> str:
    return f"{path} exists already and is never overwritten; move it away or choose another name"


# ---- tensors ---------------------------------------------------------------------------------------------------------------


def file_parts(model: ModelConfig, quantization: str) -> list[Part]:
    """The tensors of the file, in its order."""
    parts = [part for shape in param_shapes(model) for part in _split(shape, model, quantization)]
    if model.tie_embeddings:  # llama.cpp's olmo2 and olmoe want an output matrix: it is written twice
        embedding = parts[0]
        parts.append(Part("output.weight", embedding.source, embedding.shape, 0, embedding.stop, 0, embedding.number_format))
    return parts


def _split(shape: ParamShape, model: ModelConfig, quantization: str) -> Iterator[Part]:
    ours = shape.name if shape.layer is None else shape.name.removeprefix(f"blocks.{shape.layer}.")
    names = (_WHOLE[ours],) if shape.layer is None else (_LAYER | _NORMS[model.norm_order])[ours]
    prefix = "" if shape.layer is None else f"blk.{shape.layer}."
    is_exact = len(shape.shape) == 1 or ours == "moe.router.weight"
    start = 0
    for name, rows in zip(names, stacked_rows(shape.name, shape.shape, model) or shape.shape, strict=True):
        size = (*shape.shape[:-2], rows, shape.shape[-1]) if len(shape.shape) > 1 else shape.shape
        number_format = "f32" if is_exact else quantization
        if number_format == "q8_0" and shape.shape[-1] % Q8_BLOCK:
            number_format = "f16"
        turns = name in ("attn_q", "attn_k") and hf_model_type(model) == "olmo"
        yield Part(f"{prefix}{name}.weight", shape.name, size, start, start + rows, d_head(model) if turns else 0, number_format)
        start += rows


def read_part(weights: Weights, part: Part) -> Iterator[np.ndarray]:
    """The values of a part in order, as float32 (rows, width) or (width,), some rows at a time."""
    if len(part.shape) == 3:
        for expert in range(part.shape[0]):
            yield weights.read(part.source, (expert, expert + 1))[0, part.start : part.stop].float().numpy()
        return
    rows = part.stop - part.start
    if len(part.shape) == 2 and not part.interleave:
        rows = max(1, CHUNK_BYTES // (4 * part.shape[1]))
    for start in range(part.start, part.stop, rows):
        values = weights.read(part.source, (start, min(start + rows, part.stop))).float().numpy()
        yield _interleaved(values, part.interleave) if part.interleave else values


def _append_tensors(weights: Weights, parts: list[Part], path: Path) -> None:
    with open(path, "ab") as file:
        for part in parts:
            file.write(bytes(-file.tell() % ALIGNMENT))
            for values in read_part(weights, part):
                file.write(_encode(values, part).data)
        file.write(bytes(-file.tell() % ALIGNMENT))
        file.flush()
        os.fsync(file.fileno())


def _interleaved(values: np.ndarray, width: int) -> np.ndarray:
    """Rows (i, i + width / 2) of each head side by side: llama.cpp turns neighbours in `olmo`, we turn halves."""
    heads = values.reshape(-1, 2, width // 2, values.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)


def _encode(values: np.ndarray, part: Part) -> np.ndarray:
    """In the bytes of the file.

    Raises:
        ConfigError: a value is beyond what float16, which also scales q8_0, can say.
    """
    import gguf

    largest = {"f16": FLOAT16_MAX, "q8_0": FLOAT16_MAX * 127}.get(part.number_format, math.inf)
    found = float(np.abs(values).max(initial=0.0))
    if found > largest:
        raise ConfigError(
            f"{part.source} has a value of {found:.4g}, {part.number_format} ends at {largest:.4g}; use bf16 or f32"
        )
    encoded: np.ndarray = gguf.quants.quantize(values, gguf.GGMLQuantizationType[part.number_format.upper()])
    return np.ascontiguousarray(encoded).view(np.uint8)


# ---- header ----------------------------------------------------------------------------------------------------------------


def _write_header(checkpoint: Checkpoint, vocabulary: Vocabulary, parts: list[Part], quantization: str, path: Path) -> None:
    """Everything before the tensors' data."""
    import gguf

    writer = gguf.GGUFWriter(path, hf_model_type(checkpoint.model).replace("olmo3", "olmo2"))
    file_type = {"f32": "ALL_F32", "bf16": "MOSTLY_BF16", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}[quantization]
    writer.add_name(checkpoint.run.run_name if checkpoint.run is not None else checkpoint.folder.name)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_model(writer, checkpoint.model, checkpoint.seq_len)
    _add_vocabulary(writer, vocabulary)
    for part in parts:
        kind = gguf.GGMLQuantizationType[part.number_format.upper()]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(part.name, part.shape, np.dtype(np.float32), math.prod(part.shape) // block * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add_model(writer: Any, model: ModelConfig, seq_len: int) -> None:
    writer.add_vocab_size(vocab_rows(model))
    writer.add_context_length(seq_len)
    writer.add_embedding_length(model.d_model)
    writer.add_block_count(model.n_layers)
    writer.add_feed_forward_length(model.moe.d_expert if model.moe is not None else model.d_ff)
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(n_kv_heads(model))
    writer.add_rope_dimension_count(d_head(model))
    writer.add_rope_freq_base(model.rope_theta)
    if hf_model_type(model) == "olmo":
        writer.add_layer_norm_eps(model.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(model.norm_eps)
    if model.clip_qkv is not None:
        writer.add_clamp_kqv(model.clip_qkv)
    if model.moe is not None:
        writer.add_expert_count(model.moe.n_experts)
        writer.add_expert_used_count(model.moe.top_k)
    if model.sliding_window is not None:
        writer.add_sliding_window(model.sliding_window)
        writer.add_sliding_window_pattern(model.full_attention_every)
        if model.full_attention_every != 4:
            log.warning("full attention at every %d-th layer: llama.cpp of 2025 takes 4", model.full_attention_every)
    if model.rope_yarn is not None:
        _add_yarn(writer, model)


def _add_yarn(writer: Any, model: ModelConfig) -> None:
    """llama.cpp multiplies its own 0.1 ln(factor) + 1 by `attn_factor`. Source: llama.cpp, src/llama-context.cpp."""
    import gguf

    yarn = model.rope_yarn
    assert yarn is not None
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(yarn.factor)
    writer.add_rope_scaling_orig_ctx_len(yarn.original_seq_len)
    writer.add_rope_scaling_yarn_beta_fast(yarn.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(yarn.beta_slow)
    if yarn.attention_factor:
        writer.add_rope_scaling_attn_factors(yarn.attention_factor / (0.1 * math.log(yarn.factor) + 1.0))


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Documents are separated by one token, end of text; nothing is added to a prompt, as in our tokenizer."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.eos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_pad_token_id(vocabulary.pad_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
