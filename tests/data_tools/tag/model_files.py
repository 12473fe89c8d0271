"""Small models of each kind, written by hand so that their scores can be worked out."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers


def write_fasttext(path: Path, words: dict[str, float], labels: dict[str, float]) -> None:
    """A classifier of one dimension: a text's vector is the mean of its words' numbers, a label's logit that times its number.

    Source: facebookresearch/fastText src/fasttext.cc (saveModel)
    """
    args = struct.pack("<12id", 1, 5, 5, 1, 5, 1, 3, 3, 0, 0, 0, 100, 1e-4)  # one dimension, softmax, supervised, no buckets
    entries = [(word, 0) for word in words] + [(f"__label__{label}", 1) for label in labels]
    dictionary = struct.pack("<3i2q", len(entries), len(words), len(labels), len(entries), -1)
    dictionary += b"".join(name.encode() + b"\0" + struct.pack("<qb", 1, kind) for name, kind in entries)
    matrices = b"".join(b"\0" + struct.pack(f"<2q{len(v)}f", len(v), 1, *v.values()) for v in (words, labels))
    path.write_bytes(struct.pack("<2i", 793712314, 12) + args + dictionary + matrices)


def probabilities(text: str, words: dict[str, float], labels: dict[str, float]) -> dict[str, float]:
    """What that model says of a text."""
    known = [words[word] for word in text.split() if word in words]
    powers = {label: math.exp(value * sum(known) / len(known)) for label, value in labels.items()} if known else {}
    return {label: power / sum(powers.values()) for label, power in powers.items()}


def write_linear(path: Path, **changes: Any) -> None:
    """A linear model of two words and a pair of words."""
    values = {
        "format": "olmo-linear-1", "ngram_max": 2, "terms": ["good", "bad", "very bad"], "weights": [1.0, -2.0, -4.0], "bias": 0.5,
        "normalize": False, "sigmoid": False, **changes,
    }  # fmt: skip
    path.write_text(json.dumps(values))


def write_onnx(path: Path, outputs: np.ndarray, inputs: tuple[str, ...] = ("input_ids", "attention_mask")) -> None:
    """A model whose outputs are those of the text's tokens, (vocabulary, outputs), added up."""
    given = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"]) for name in inputs]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis"], ["mask3"]),
        helper.make_node("Mul", ["rows", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    constants = {"table": outputs.astype(np.float32), "axis": np.array([2]), "middle": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "sum",
        given,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", outputs.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def write_tokenizer(path: Path, words: list[str]) -> None:
    """One token for each word, by its place in the list; the first stands for all others."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
