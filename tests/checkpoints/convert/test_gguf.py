"""GGUF files against llama.cpp itself: its log-probabilities, its continuations and its ids; and what is refused."""

import ctypes
import json
import logging
import math
import sys
import unicodedata
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer
from torch import Tensor

import checkpoints.convert.gguf as module
from checkpoints.convert.gguf import find_gguf_problems, find_model_problems, write_gguf
from checkpoints.convert.gguf_tokenizer import CL100K, read_vocabulary
from checkpoints.hf_names import hf_config, to_hf
from checkpoints.load import load_model
from checkpoints.opening import Checkpoint, open_checkpoint
from olmo_train.config.model import Gate, ModelConfig, MoEConfig, Norm, NormOrder, QKNorm, YarnConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.model.shapes import param_shapes
from olmo_train.tokenizer import Tokenizer
from tests.texts import VOCAB, TextCorpus

BASE: dict[str, Any] = {"d_model": 64, "n_layers": 5, "n_heads": 4, "vocab_size": VOCAB, "padded_vocab_size": 320}
POST: dict[str, Any] = {**BASE, "norm_order": NormOrder.POST, "qk_norm": QKNorm.FULL, "d_ff": 96}
FIRST: dict[str, Any] = {**BASE, "norm": Norm.LAYER_NORM_PLAIN, "d_ff": 96}
WINDOWED: dict[str, Any] = {**POST, "sliding_window": 5, "rope_theta": 5e5}


def experts(**changes: Any) -> MoEConfig:
    values = {"n_experts": 8, "top_k": 2, "d_expert": 48, "load_balancing_loss_weight": 0.0, "router_z_loss_weight": 0.0}
    return MoEConfig(**{**values, **changes})


OLMOE = ModelConfig(**BASE, qk_norm=QKNorm.FULL, moe=experts())
MODELS = {
    "olmoe": OLMOE,
    "olmoe, tied, YaRN": replace(OLMOE, tie_embeddings=True, rope_yarn=YarnConfig(4.0, 16)),
    "olmo2, grouped queries": ModelConfig(**POST, n_kv_heads=2, norm_eps=1e-6),
    "olmo3": ModelConfig(**WINDOWED),
    "olmo3, another pattern, YaRN": ModelConfig(**WINDOWED, full_attention_every=2, rope_yarn=YarnConfig(8.0, 16)),
    "olmo3, other YaRN": ModelConfig(**WINDOWED, rope_yarn=YarnConfig(8.0, 16, 4.0, 2.0, 1.7)),
    "olmo, clamped, tied": ModelConfig(**FIRST, clip_qkv=1.0, tie_embeddings=True),
    "olmo, grouped queries": ModelConfig(**FIRST, n_kv_heads=2),
}
PROMPT = [(7 * i * i + 3 * i + 11) % VOCAB for i in range(20)]


def checkpoint_of(model: ModelConfig, folder: Path, tokenizer: Path, seq_len: int = 64) -> Checkpoint:
    """Random weights in a Hugging Face folder; the output is sharp enough that rounding chooses no other token."""
    generator = torch.Generator().manual_seed(0)
    params = {}
    for shape in param_shapes(model):
        values = torch.randn(shape.shape, generator=generator)
        params[shape.name] = 1 + 0.3 * values if len(shape.shape) == 1 else 0.15 * values
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in to_hf(params, model).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf_config(model, seq_len)))
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return open_checkpoint(str(folder))


class LlamaCpp:
    """llama.cpp with a file loaded, asked by its server on loopback; keys and values in float32."""

    def __init__(self, path: Path) -> None:
        llama = pytest.importorskip("xllamacpp")
        params = llama.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(path), 256, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.warmup = False
        params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = llama.Server(params)
        # Kept for ever: its destructor waits for a thread that it sometimes does not wake.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.server))

    def post(self, path: str, **values: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.server.listening_address}{path}", json.dumps(values).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    def encode(self, text: str, with_special: bool) -> list[int]:
        return self.post("/tokenize", content=text, add_special=False, parse_special=with_special)["tokens"]

    def decode(self, ids: list[int]) -> str:
        return self.post("/detokenize", tokens=ids)["content"]


def compare(checkpoint: Checkpoint, path: Path, n_prompt: int = 20) -> tuple[list[bool], float]:
    """Of llama.cpp's greedy continuation: whether each token is our most probable one, and how far log-probabilities differ."""
    answer = LlamaCpp(path).post(
        "/completion",
        prompt=PROMPT[:n_prompt],
        n_predict=30,
        temperature=0,
        n_probs=VOCAB,
        return_tokens=True,
        cache_prompt=False,
    )
    model, ids = load_model(checkpoint, torch.device("cpu")), answer["tokens"]
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT[:n_prompt] + ids]))
    assert isinstance(logits, Tensor)
    ours = logits[0, n_prompt - 1 : -1].log_softmax(-1)
    worst = 0.0
    for told in answer["completion_probabilities"]:  # nothing is told of tokens that end within a character: find the place
        theirs = {top["id"]: top["logprob"] for top in told["top_logprobs"]}
        of_place = (ours[:, list(theirs)] - torch.tensor(list(theirs.values()))).abs().amax(1)
        worst = max(worst, float(of_place[torch.tensor(ids) == told["id"]].min()))
    return (ours.argmax(-1) == torch.tensor(ids)).tolist(), worst


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_continues_as_our_model_does(name: str, corpus: TextCorpus, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(MODELS[name], tmp_path / "hf", corpus.tokenizer)
    write_gguf(checkpoint, tmp_path / "model.gguf", "f32")
    same, worst = compare(checkpoint, tmp_path / "model.gguf")
    assert len(same) >= 5  # fewer than 30 if it chose the end of text
    assert all(same)
    assert worst < 5e-5


@pytest.mark.parametrize(("quantization", "tolerance"), [("bf16", 0.2), ("f16", 0.03), ("q8_0", 0.8)])
@pytest.mark.parametrize("model", [replace(OLMOE, moe=experts(top_k=8)), MODELS["olmo3"], MODELS["olmo, grouped queries"]])
def test_quantized_files_come_close(
    model: ModelConfig, quantization: str, tolerance: float, corpus: TextCorpus, tmp_path: Path
) -> None:
    # All experts are chosen: rounding may swap two that are nearly as good, and then nothing is close.
    checkpoint = checkpoint_of(model, tmp_path / "hf", corpus.tokenizer)
    write_gguf(checkpoint, tmp_path / "model.gguf", quantization)
    same, worst = compare(checkpoint, tmp_path / "model.gguf")
    assert sum(same) >= 0.9 * len(same) >= 4
    assert 1e-4 < worst < tolerance


def test_a_run_is_exported_with_the_tokenizer_of_its_shards(run: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(run))
    write_gguf(checkpoint, tmp_path / "model.gguf", "f32")
    same, worst = compare(checkpoint, tmp_path / "model.gguf", 6)  # of 16 tokens of context
    assert same
    assert all(same)
    assert worst < 5e-5
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["general.name"].contents() == "first"


@pytest.mark.parametrize("quantization", ["f32", "bf16", "f16", "q8_0"])
def test_values_are_rounded_as_the_format_says(quantization: str, corpus: TextCorpus, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(OLMOE, tmp_path / "hf", corpus.tokenizer)
    write_gguf(checkpoint, tmp_path / "model.gguf", quantization)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert len(found) == 3 + 5 * 12
    read = checkpoint.weights.read
    expected = {
        "token_embd.weight": read("embedding.weight"), "output.weight": read("lm_head.weight"),
        "blk.1.attn_k.weight": read("blocks.1.attention.w_qkv.weight")[64:128],
        "blk.4.ffn_up_exps.weight": read("blocks.4.moe.w_in")[:, 48:], "blk.2.attn_norm.weight": read("blocks.2.attention_norm.weight"),
        "blk.0.ffn_gate_inp.weight": read("blocks.0.moe.router.weight"), "blk.3.ffn_down_exps.weight": read("blocks.3.moe.w_out"),
    }  # fmt: skip
    for name, values in expected.items():
        kind = found[name].tensor_type.name.lower()
        assert kind == (
            "f32"
            if "norm" in name or "gate_inp" in name
            else "f16"
            if "down" in name and quantization == "q8_0"
            else quantization
        )
        stored = torch.tensor(gguf.quants.dequantize(found[name].data, found[name].tensor_type).reshape(values.shape))
        if kind == "q8_0":  # 127 steps to the largest of 32 values, and that in float16
            step = values.reshape(-1, 32).abs().amax(1, keepdim=True) / 127
            assert ((stored - values).reshape(-1, 32).abs() <= step * (0.5 + 127 * 2**-11)).all()
        else:
            dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[kind]
            assert torch.equal(stored, values.to(dtype).float())


def test_metadata_says_what_the_config_says(corpus: TextCorpus, tmp_path: Path) -> None:
    model = replace(OLMOE, rope_yarn=YarnConfig(4.0, 16, attention_factor=1.5))
    write_gguf(checkpoint_of(model, tmp_path / "hf", corpus.tokenizer), tmp_path / "model.gguf", "q8_0")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    values = {name: field.contents() for name, field in fields.items()}
    expected = {
        "general.architecture": "olmoe", "general.name": "hf", "general.file_type": 7, "olmoe.block_count": 5,
        "olmoe.context_length": 64, "olmoe.embedding_length": 64, "olmoe.feed_forward_length": 48, "olmoe.attention.head_count": 4,
        "olmoe.attention.head_count_kv": 4, "olmoe.expert_count": 8, "olmoe.expert_used_count": 2, "olmoe.rope.freq_base": 10000.0,
        "olmoe.rope.dimension_count": 16, "olmoe.vocab_size": 320, "olmoe.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "olmoe.rope.scaling.type": "yarn", "olmoe.rope.scaling.factor": 4.0, "olmoe.rope.scaling.original_context_length": 16,
        "olmoe.rope.scaling.attn_factor": pytest.approx(1.5 / (0.1 * math.log(4) + 1)),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    assert {name: values[name] for name in expected} == expected


def test_a_part_of_a_tensor_is_held_at_a_time(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(str(run))
    write_gguf(checkpoint, tmp_path / "whole.gguf", "bf16")
    monkeypatch.setattr(module, "CHUNK_BYTES", 1024)
    reads: list[int] = []
    read = checkpoint.weights.read

    def noted(name: str, rows: tuple[int, int] | None = None) -> Tensor:
        tensor = read(name, rows)
        reads.append(tensor.numel() * 4)
        return tensor

    monkeypatch.setattr(checkpoint.weights, "read", noted)
    write_gguf(checkpoint, tmp_path / "parts.gguf", "bf16")
    assert max(reads) == 2 * 16 * 32 * 4  # one expert's gate and up
    assert (tmp_path / "parts.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


# ---- tokenizer -------------------------------------------------------------------------------------------------------

HOSTILE = [
    "", " ", "  ", "a  b   c", "\n", "\r\n\r\n x", "\t\ttabs", "don't DON'T we'LL i've 'sd '' 's x'REally", "12345678 12,345.678 \u0661\u0662 \u00bd",
    "h\u00e9llo \ufb01", "\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4", "\U0001f642\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "def f(x):\n    return x**2  # y\n",
    " " * 30 + "x", "<|endoftext|>", "a<|endoftext|>b <|endof text|>", "|||IP_ADDRESS||| x|||EMAIL_ADDRESS|||", "<|padding|>", "<|unused_310|>",
    "\x00\x01\x7f", "\u200b\u2028\u00a0\u3000x", "'\u017f 'S \u212a", "\ufeffbom", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0645\u0631\u062d\u0628\u0627",
    "\u01c5 \u00df \u1e9e \u0130 \u0131", "\x85\x1c\x1d x", "\u2090\u2070\u2167\u325a", "\r", "x\n\n\n y\n ", "a\u2029b", "\u1680\u180e \u205f", "\U00016ff0\U000e0100x",
]  # fmt: skip


def own(corpus: TextCorpus, folder: Path) -> Path:
    return corpus.tokenizer


def olmo(corpus: TextCorpus, folder: Path) -> Path:
    olmo_eval = pytest.importorskip("olmo_eval")
    return Path(olmo_eval.__file__).parent / "tokenizers" / "allenai_gpt-neox-olmo-dolma-v1_5.json"


def dolma2(corpus: TextCorpus, folder: Path, ignore_merges: bool = False) -> Path:
    """Of a few ids, made like dolma2's."""
    tokenizer = HFTokenizer(models.BPE(ignore_merges=ignore_merges))
    words = pre_tokenizers.Split(Regex(CL100K), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|endoftext|>", "<|pad|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([path.read_text() for path in corpus.documents.iterdir()], trainer)
    tokenizer.save(str(folder / "dolma2.json"))
    return folder / "dolma2.json"


def dolma2_without_merges(corpus: TextCorpus, folder: Path) -> Path:
    return dolma2(corpus, folder, ignore_merges=True)


def tiny_model(tokenizer: Path) -> ModelConfig:
    n_ids = Tokenizer(tokenizer).vocab_size
    return replace(ModelConfig(**POST), d_model=16, n_layers=1, d_ff=16, vocab_size=n_ids, padded_vocab_size=n_ids + 20)


@pytest.mark.parametrize(
    ("make", "pre"), [(own, "gpt-2"), (olmo, "olmo"), (dolma2, "dbrx"), (dolma2_without_merges, "llama-bpe")]
)
def test_llama_cpp_gives_the_same_ids(make: Any, pre: str, corpus: TextCorpus, tmp_path: Path) -> None:
    path = make(corpus, tmp_path)
    checkpoint = checkpoint_of(tiny_model(path), tmp_path / "hf", path)
    write_gguf(checkpoint, tmp_path / "model.gguf", "f32")
    assert gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.pre"].contents() == pre
    llama, ours = LlamaCpp(tmp_path / "model.gguf"), Tokenizer(path)
    generator = np.random.default_rng(0)
    noise = ["".join(map(chr, generator.integers(1, 0x3000, 20))) for _ in range(50)]
    for text in (unicodedata.normalize("NFC", text) for text in (*HOSTILE, *noise)):
        assert llama.encode(text, with_special=True) == ours.encode(text)
        assert llama.encode(text, with_special=False) == ours.encode_batch([text])[0]
        assert llama.decode(ours.encode(text)) == text


def test_rows_without_a_token_get_a_placeholder_that_is_unused(corpus: TextCorpus, tmp_path: Path) -> None:
    values = json.loads(corpus.tokenizer.read_text())
    taken = {**values["added_tokens"][0], "id": VOCAB, "content": f"<|unused_{VOCAB + 1}|>", "special": False}
    values["added_tokens"] += [taken, {**taken, "id": VOCAB + 2, "content": "<|padding|>", "special": True}]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values))
    found = read_vocabulary(path, VOCAB + 4)
    assert found.tokens[VOCAB:] == [taken["content"], f"<<|unused_{VOCAB + 1}|>>", "<|padding|>", f"<|unused_{VOCAB + 3}|>"]
    assert found.types[0] == 3
    assert found.types[1:VOCAB] == [1] * (VOCAB - 1)
    assert found.types[VOCAB:] == [4, 5, 3, 5]
    assert (found.eos_id, found.pad_id) == (0, VOCAB + 2)


def test_text_that_llama_cpp_will_not_normalize_is_warned_of(
    corpus: TextCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        write_gguf(checkpoint_of(MODELS["olmo3"], tmp_path / "hf", corpus.tokenizer), tmp_path / "model.gguf", "f32")
    tokenizer = tmp_path / "hf/tokenizer.json"
    assert caplog.messages == [f"{tokenizer} brings text to NFC and llama.cpp does not: give it text in NFC"]
    llama, ours = LlamaCpp(tmp_path / "model.gguf"), Tokenizer(tokenizer)
    assert llama.encode("e\u0301", with_special=False) != ours.encode("e\u0301") == ours.encode("\u00e9")


def test_a_pattern_of_layers_that_old_releases_ignore_is_warned_of(
    corpus: TextCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = MODELS["olmo3, another pattern, YaRN"]
    with caplog.at_level(logging.WARNING):
        write_gguf(checkpoint_of(model, tmp_path / "hf", corpus.tokenizer), tmp_path / "model.gguf", "f32")
    assert "full attention at every 2-th layer: llama.cpp of 2025 takes 4" in caplog.messages


# ---- what is refused -------------------------------------------------------------------------------------------------

INSTEAD = "; convert to a Hugging Face folder instead"


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (
            replace(OLMOE, moe=experts(normalize_top_k=True)),
            f"model.moe.normalize_top_k=true: llama.cpp's olmoe does not divide the gates by their sum{INSTEAD}",
        ),
        (replace(OLMOE, n_kv_heads=2), f"model.n_kv_heads=2: llama.cpp's olmoe has as many as n_heads=4{INSTEAD}"),
        (replace(OLMOE, clip_qkv=8.0), f"model.clip_qkv=8.0: llama.cpp's olmoe does not clamp{INSTEAD}"),
        (ModelConfig(**POST, d_head=32), f"model.d_head=32: llama.cpp's olmo2 has d_model / n_heads{INSTEAD}"),
        (
            ModelConfig(**POST, clip_qkv=8.0),
            "model.clip_qkv: Olmo2ForCausalLM does not clamp; no Hugging Face class computes the same, nor does llama.cpp",
        ),
        (
            replace(OLMOE, moe=experts(gate=Gate.SIGMOID)),
            "model.moe.gate=sigmoid: OlmoeForCausalLM cannot express it; no Hugging Face class computes the same, nor does llama.cpp",
        ),
        (
            replace(OLMOE, moe=experts(n_shared_experts=1)),
            "model.moe.n_shared_experts: OlmoeForCausalLM cannot express it; no Hugging Face class computes the same, nor does llama.cpp",
        ),
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(model: ModelConfig, problem: str) -> None:
    assert find_model_problems(model) == [problem]


def edited(corpus: TextCorpus, path: Path, **changes: Any) -> Path:
    """The corpus's tokenizer with values changed; `model__x` changes `model.x`."""
    values = json.loads(corpus.tokenizer.read_text())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values[section][key] = value
        else:
            values[section] = value
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"pre_tokenizer": {"type": "Digits", "individual_digits": False}},
            (
                'llama.cpp has no pre-tokenizer that cuts words like [{"type": "Digits", "individual_digits": false}], '
                "ignore_merges=False; it knows ByteLevel with GPT-2's pattern, and dolma2's pattern before ByteLevel, both without a "
                f"prefix space{INSTEAD}"
            ),
        ),
        ({"model__dropout": 0.1}, f"model.dropout=0.1 changes the ids and llama.cpp has no such thing{INSTEAD}"),
        ({"normalizer": {"type": "Lowercase"}}, f"normalizer Lowercase changes the text and llama.cpp would not{INSTEAD}"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused(
    changes: dict[str, Any], problem: str, corpus: TextCorpus, tmp_path: Path
) -> None:
    path = edited(corpus, tmp_path / "tokenizer.json", **changes)
    with pytest.raises(ConfigError) as caught:
        read_vocabulary(path, VOCAB)
    assert caught.value.problems == [f"{path}: {problem}"]


@pytest.mark.parametrize("change", [{"add_prefix_space": True}, {"use_regex": False}])
def test_other_byte_levels_are_unknown_pre_tokenizers(change: dict[str, bool], corpus: TextCorpus, tmp_path: Path) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True, **change}
    with pytest.raises(ConfigError, match="llama.cpp has no pre-tokenizer that cuts words like"):
        read_vocabulary(edited(corpus, tmp_path / "tokenizer.json", pre_tokenizer=byte_level), VOCAB)


def test_added_tokens_that_take_spaces_with_them_are_refused(corpus: TextCorpus, tmp_path: Path) -> None:
    token = {**json.loads(corpus.tokenizer.read_text())["added_tokens"][0], "lstrip": True}
    path = edited(corpus, tmp_path / "tokenizer.json", added_tokens=[token])
    with pytest.raises(ConfigError) as caught:
        read_vocabulary(path, VOCAB)
    assert caught.value.problems == [
        f"{path}: the added token '<|endoftext|>' has lstrip=true, which llama.cpp does not honour{INSTEAD}"
    ]


def test_other_kinds_of_tokenizers_and_too_many_ids_are_refused(corpus: TextCorpus, tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "a": 1}, "unk_token": "a"}
    path = edited(corpus, tmp_path / "tokenizer.json", model=model)
    with pytest.raises(ConfigError) as caught:
        read_vocabulary(path, 1)
    assert caught.value.problems == [
        f"{path}: a model of type WordLevel; GGUF is written for byte-level BPE{INSTEAD}",
        f"{path}: it has 2 ids, the model 1 rows; give the tokenizer of the run's shards",
    ]


def test_all_problems_are_told_at_once_and_nothing_is_written(
    corpus: TextCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(replace(OLMOE, n_kv_heads=2), tmp_path / "hf", corpus.tokenizer)
    target = tmp_path / "model.gguf"
    target.write_text("precious")
    monkeypatch.setitem(sys.modules, "gguf", None)  # as an import of a package that is not there
    with pytest.raises(ConfigError) as caught:
        write_gguf(replace(checkpoint, tokenizer=None), target, "q4_k")
    assert caught.value.problems == [
        "GGUF needs the package gguf, which is not installed; pip install 'olmo-train[gguf]'",
        "quantization q4_k is not one of f32, bf16, f16, q8_0",
        f"{target} exists already and is never overwritten; move it away or choose another name",
        f"model.n_kv_heads=2: llama.cpp's olmoe has as many as n_heads=4{INSTEAD}",
        f"{checkpoint.where}: no tokenizer is known, and a GGUF file holds one; give --tokenizer tokenizer.json",
    ]
    assert target.read_text() == "precious"
    target.unlink()
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    [*_, problem] = find_gguf_problems(replace(checkpoint, tokenizer=broken), target, "f32")
    assert problem.startswith(f"{broken} is not a tokenizers file: ")


def test_a_value_beyond_float16_is_refused(corpus: TextCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_of(MODELS["olmo3"], tmp_path / "hf", corpus.tokenizer)
    read = checkpoint.weights.read
    monkeypatch.setattr(checkpoint.weights, "read", lambda name, rows=None: read(name, rows) * (1e6 if "w_out" in name else 1))
    with pytest.raises(
        ConfigError, match=r"blocks.0.attention.w_out.weight has a value of \S+, f16 ends at 6.55e\+04; use bf16 or"
    ):
        write_gguf(checkpoint, tmp_path / "model.gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    write_gguf(checkpoint, tmp_path / "model.gguf", "q8_0")


def test_a_damaged_checkpoint_or_place_leaves_nothing(corpus: TextCorpus, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(MODELS["olmo3"], tmp_path / "hf", corpus.tokenizer)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/model.gguf: .*; free space or choose another place"):
        write_gguf(checkpoint, tmp_path / "file/model.gguf", "f32")
    weights = tmp_path / "hf/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="fetch the folder again"):
        write_gguf(open_checkpoint(str(tmp_path / "hf")), tmp_path / "out/model.gguf", "f32")
    assert not list(tmp_path.glob("out/.*")) + list(tmp_path.glob("out/*"))
