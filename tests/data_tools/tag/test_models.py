"""Models that a user brings: scores against ones worked out by hand or by scikit-learn, and every way a file can be wrong."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools.tag.build_models import MODEL_TAGGERS, build_model_tagger, model_files, model_problems
from data_tools.tag.linear_model import LinearModel
from data_tools.tag.list_files import sha256_of
from data_tools.tag.model_config import (
    Activation,
    FastTextModelConfig,
    LinearModelConfig,
    ListConfig,
    ModelTaggersConfig,
    OnnxModelConfig,
    Unit,
)
from data_tools.tag.tagger import Scores
from data_tools.tag.units import MOST_CHARS, MOST_SPANS, units
from olmo_train.errors import ConfigError
from tests.data_tools.tag.model_files import probabilities, write_fasttext, write_linear, write_onnx, write_tokenizer
from tests.data_tools.tag.texts import in_pieces, line

WORDS, LABELS = {"good": 1.0, "bad": -2.0, "so-so": 0.25}, {"hq": 1.0, "cc": -0.5, "other": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("models")
    write_fasttext(folder / "quality.bin", WORDS, LABELS)
    write_linear(folder / "linear.json")
    write_tokenizer(folder / "tokenizer.json", ["?", "good", "bad"])
    write_onnx(folder / "edu.onnx", np.array([[0.0], [1.5], [-1.0]]))
    write_onnx(folder / "two.onnx", np.array([[0.0, 0.0], [1.5, 0.0], [-1.0, 2.0]]))
    (folder / "list.txt").write_text("bad.example\n")
    return folder


def tag(name: str, model: object, *lines: object) -> list[Scores]:
    config = ModelTaggersConfig()
    getattr(config, name).append(model)
    return build_model_tagger(name, config).tag(lines)  # type: ignore[arg-type]


# ---- fastText ---------------------------------------------------------------------------------------------------------------


def test_fasttext_scores_are_those_worked_out_by_hand(folder: Path) -> None:
    text = " good bad\ngood\r\nso-so unknown\n"
    model = FastTextModelConfig("dclm", str(folder / "quality.bin"))
    (scores,) = tag("fasttext", model, line(text))
    expected = probabilities(text, WORDS, LABELS)
    assert scores.keys() == {"dclm_hq", "dclm_cc", "dclm_other"}
    for label, value in expected.items():
        assert scores[f"dclm_{label}"] == [[0, len(text), pytest.approx(value, abs=2e-5)]]
    model.labels, model.lowercase = ["cc"], True
    (scores,) = tag("fasttext", model, line(text.upper()))
    assert scores == {"dclm_cc": [[0, len(text), pytest.approx(expected["cc"], abs=2e-5)]]}
    assert tag("fasttext", model, line("")) == [{"dclm_cc": [[0, 0, 0.0]]}]


def test_fasttext_gives_spans_of_sentences_and_paragraphs(folder: Path) -> None:
    text = "bad. good! Is bad\n\ngood bad.\n"
    model = FastTextModelConfig("nsfw", str(folder / "quality.bin"), ["cc"], Unit.SENTENCE)
    (scores,) = tag("fasttext", model, line(text))
    assert [text[int(a) : int(b)] for a, b, _ in scores["nsfw_cc"]] == ["bad.", "good!", "Is bad", "good bad."]
    assert tag("fasttext", model, in_pieces(text)) == [scores]
    model.unit, model.min_score = Unit.PARAGRAPH, 0.5
    (scores,) = tag("fasttext", model, line("bad\ngood\n \nbad bad"))
    assert [span[:2] for span in scores["nsfw_cc"]] == [[0, 3], [11, 18]]


def test_a_long_document_gets_the_mean_of_its_pieces(folder: Path) -> None:
    model = FastTextModelConfig("dclm", str(folder / "quality.bin"), ["hq"])
    text = "good good " * 21 + "?" + "bad " * 52 + "bad"  # pieces of 211 bytes
    (scores,) = tag("fasttext", model, in_pieces(text))
    halves = [probabilities(half, WORDS, LABELS)["hq"] for half in (text[:211], text[211:])]
    assert scores == {"dclm_hq": [[0, 422, pytest.approx(sum(halves) / 2, abs=2e-5)]]}


@pytest.mark.parametrize("size", [0, 7, 50, 100, 130, 200, -1])
def test_a_fasttext_file_that_was_cut_short_is_refused_before_the_library_sees_it(
    folder: Path, tmp_path: Path, size: int
) -> None:
    """The library ends the process on some of these, and takes others for whole."""
    path = tmp_path / "cut.bin"
    path.write_bytes((folder / "quality.bin").read_bytes()[:size])
    config = ModelTaggersConfig(fasttext=[FastTextModelConfig("dclm", str(path))])
    (problem,) = model_problems(["fasttext"], config)
    assert problem.startswith(f"models.fasttext[0].path: {path} is ")
    assert problem.endswith("get it again")
    with pytest.raises(ConfigError, match="get it again"):
        build_model_tagger("fasttext", config)


def changed(data: bytes, at: int, byte: int) -> bytes:
    return data[:at] + bytes([byte]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: b"hello, world",
            "is no fastText model (.bin or .ftz of fastText 0.1.0 or later): it does not begin as one",
        ),
        (lambda data: changed(data, 8 + 28, 1), "is a model of word vectors, not a classifier: it has no labels"),
        (lambda data: data + b"x", "has {more} bytes where its fields take {size}; get it again"),
        (lambda data: changed(data, 64 + 8, 9), "it says that it has 3 words and 9 labels of 6, in 1 dimensions; get it again"),
        (lambda data: changed(data, 8, 2), "it has a matrix of 3 x 1 for 2 dimensions; get it again"),
        (lambda data: changed(data, 8 + 24, 9), "its loss is number 9; get it again"),
        (lambda data: changed(data, 8 + 32, 7), "it has 3 vectors for 3 words and 7 buckets; get it again"),
    ],
)
def test_a_fasttext_file_that_is_none_is_refused(folder: Path, tmp_path: Path, change, message: str) -> None:
    path, data = tmp_path / "model.bin", (folder / "quality.bin").read_bytes()
    path.write_bytes(change(data))
    (problem,) = model_problems(["fasttext"], ModelTaggersConfig(fasttext=[FastTextModelConfig("dclm", str(path))]))
    assert problem.endswith(message.format(size=len(data), more=len(data) + 1))


# ---- linear -----------------------------------------------------------------------------------------------------------------


def test_linear_scores_are_those_worked_out_by_hand(folder: Path) -> None:
    model = LinearModelConfig("quality", str(folder / "linear.json"))
    assert tag("linear", model, line("Good, good; very bad I")) == [{"quality": [[0, 22, 1 + 1 - 2 - 4 + 0.5]]}]
    assert tag("linear", model, line("")) == [{"quality": [[0, 0, 0.5]]}]
    model.unit, model.min_score = Unit.PARAGRAPH, 0.0
    assert tag("linear", model, line("good\nbad\n good"), in_pieces("good")) == [
        {"quality": [[0, 4, 1.5], [9, 14, 1.5]]}, {"quality": [[0, 4, 1.5]]},
    ]  # fmt: skip


@pytest.mark.parametrize("sublinear", [False, True])
def test_linear_scores_are_those_of_scikit_learn(tmp_path: Path, sublinear: bool) -> None:
    """With the export of docs/tag_models.md."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear_model = pytest.importorskip("sklearn.linear_model")
    random_ = random.Random(0)
    texts = [
        " ".join(random_.choices(["Good", "bad", "ugly", "a", "it's", "naïve", "x1"], k=random_.randint(1, 30)))
        for _ in range(60)
    ]
    vectorizer = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=sublinear)
    classifier = linear_model.LogisticRegression().fit(vectorizer.fit_transform(texts), [i % 2 for i in range(60)])
    write_linear(
        tmp_path / "model.json", terms=vectorizer.get_feature_names_out().tolist(), idf=vectorizer.idf_.tolist(),
        weights=classifier.coef_[0].tolist(), bias=float(classifier.intercept_[0]), sublinear_tf=sublinear, normalize=True, sigmoid=True,
    )  # fmt: skip
    model = LinearModel(tmp_path / "model.json")
    expected = classifier.predict_proba(vectorizer.transform(texts))[:, 1]
    np.testing.assert_allclose([model.score(one) for one in texts], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "mine"}, "is no linear model: format is 'mine', not 'olmo-linear-1'"),
        (
            {"bias": None},
            "is no linear model: Expected `float`, got `null` - at `$.bias`; docs/tag_models.md says how to write one",
        ),
        (
            {"weights": [1.0]},
            "3 different terms, 1 weights and 3 values of idf; each term has one of each, and there is at least one",
        ),
        ({"ngram_min": 3}, "n-grams of 3 to 2 words; it takes 1 <= ngram_min <= ngram_max"),
    ],
)
def test_a_linear_model_that_is_none_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_linear(tmp_path / "model.json", **changes)
    (problem,) = model_problems(
        ["linear"], ModelTaggersConfig(linear=[LinearModelConfig("quality", str(tmp_path / "model.json"))])
    )
    assert problem.startswith(f"models.linear[0].path: {tmp_path / 'model.json'}")
    assert problem.endswith(message)


# ---- ONNX -------------------------------------------------------------------------------------------------------------------


def onnx(folder: Path, name: str = "edu", **fields: object) -> OnnxModelConfig:
    config = OnnxModelConfig(name, str(folder / f"{name}.onnx"), str(folder / "tokenizer.json"))
    for key, value in fields.items():
        setattr(config, key, value)
    return config


def test_onnx_scores_are_those_worked_out_by_hand_in_whatever_batch(folder: Path) -> None:
    texts = ["good good bad", "", "bad " * 70, "so good"]
    expected: list[Scores] = [{"edu": [[0, len(text), 1.5 * text.count("good") - text.count("bad")]]} for text in texts]
    for batch_size in (1, 3):
        assert tag("onnx", onnx(folder, batch_size=batch_size), *map(line, texts)) == expected
    assert tag("onnx", onnx(folder, max_tokens=3), line("good good bad bad bad")) == [{"edu": [[0, 21, 2.0]]}]
    assert tag("onnx", onnx(folder, max_tokens=2), in_pieces("good " * 100)) == [{"edu": [[0, 500, 3.0]]}]


def test_onnx_outputs_have_names_and_an_activation(folder: Path) -> None:
    softmax = onnx(folder, "two", labels=["no", "yes"], activation=Activation.SOFTMAX)
    yes = 1 / (1 + np.exp(-1.0 - 2.0))
    assert tag("onnx", softmax, line("bad")) == [{"two_no": [[0, 3, round(1 - yes, 5)]], "two_yes": [[0, 3, round(yes, 5)]]}]
    sigmoid = onnx(folder, activation=Activation.SIGMOID)
    assert tag("onnx", sigmoid, line("good")) == [{"edu": [[0, 4, round(1 / (1 + np.exp(-1.5)), 5)]]}]


def test_an_onnx_model_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    write_onnx(tmp_path / "inputs.onnx", np.zeros((3, 1)), ("input_ids", "attention_mask", "pixels"))
    for config, message in (
        (onnx(folder, path=str(tmp_path / "bad.onnx")), f"{tmp_path}/bad.onnx cannot be loaded as an ONNX model: "),
        (onnx(folder, tokenizer=str(tmp_path / "bad.onnx")), f"{tmp_path}/bad.onnx is no tokenizer.json: "),
        (onnx(folder, path=str(tmp_path / "inputs.onnx")), "wants the inputs pixels; it may have input_ids, attention_mask, token_type_ids only"),
        (onnx(folder, "two", labels=["one"]), "two.onnx has 2 outputs, and labels names 1; name each"),
        (onnx(folder, provider="AbacusProvider"), "provider=AbacusProvider is not there; this ONNX Runtime has "),
        (onnx(folder, max_tokens=0), "max_tokens=0 and batch_size=1 must be positive"),
        (onnx(folder, tokenizer="nowhere"), "models.onnx[0].tokenizer=nowhere does not exist"),
    ):  # fmt: skip
        (problem,) = model_problems(["onnx"], ModelTaggersConfig(onnx=[config]))
        assert message in problem
        assert problem.startswith("models.onnx[0]")


# ---- settings ---------------------------------------------------------------------------------------------------------------


def test_all_that_is_wrong_is_told_at_once(folder: Path) -> None:
    good, sum_ = str(folder / "list.txt"), sha256_of(folder / "list.txt")
    config = ModelTaggersConfig(
        urls=[ListConfig("a", good, sum_), ListConfig("a", "nowhere"), ListConfig("b__c", good, "0" * 64)],
        fasttext=[FastTextModelConfig("q", str(folder / "quality.bin"), ["hq", "fun"])],
    )
    config.pii.window = -1
    assert model_problems(["pii", "urls", "words", "fasttext", "secrets"], config) == [
        "models.pii.window=-1 is not in 0 .. 10000 characters",
        "models.urls: 2 entries have the name a; each needs one of its own",
        "models.urls[1].path=nowhere does not exist; give the path of a file on this machine, nothing is downloaded",
        "models.urls[2].name=b__c must be letters and digits with single `_` or `-` between; it names attributes",
        f"models.urls[2].path={good} has sha256 {sum_}, not {'0' * 64}; get the file again, or correct the sum",
        "models.words is empty; the tagger words needs at least one entry with name and path",
        f"models.fasttext[0].labels: {folder}/quality.bin has no label fun; it has hq, cc, other",
    ]
    assert model_problems(["secrets", "pii"], ModelTaggersConfig()) == []
    config = ModelTaggersConfig(words=[ListConfig("bad", good), ListConfig("bad_count", good)])
    assert model_problems(["words"], config) == [
        "models.words: the name bad_count begins as bad does; types made of both could be the same: rename one"
    ]


def test_files_of_the_taggers_are_inputs(folder: Path) -> None:
    lists = [ListConfig("a", "list.txt")]
    config = ModelTaggersConfig(urls=lists, words=lists, onnx=[OnnxModelConfig("edu", "edu.onnx", "tokenizer.json")])
    config.language.model = "lid.bin"
    assert list(map(str, model_files(config))) == ["list.txt", "edu.onnx", "tokenizer.json", "lid.bin"]
    assert list(map(str, model_files(config, ["words"]))) == ["list.txt"]
    with pytest.raises(AssertionError):
        build_model_tagger("gopher", config)
    assert len(set(MODEL_TAGGERS)) == 8


# ---- units ------------------------------------------------------------------------------------------------------------------


def test_units_of_a_text_in_pieces_are_those_of_the_whole() -> None:
    random_ = random.Random(0)
    parts = ["word", " ", " ", ". ", "! ", "\n", "\n\n", "“quoted.” ", "。", "é", "x" * 100, "3.5"]
    for _ in range(20):
        text = "".join(random_.choices(parts, k=200))
        for unit in (Unit.PARAGRAPH, Unit.SENTENCE):
            whole = list(units(line(text), unit))
            assert list(units(in_pieces(text), unit)) == whole
            assert all(text[start : start + len(part)] == part and part.strip() for start, part in whole)
            assert "".join("".join(part.split()) for _, part in whole) == "".join(text.split())


def test_units_are_bounded_in_size_and_number() -> None:
    long = "y" * (2 * MOST_CHARS + 5)
    for made in (line, in_pieces):
        assert [(start, len(text)) for start, text in units(made(long), Unit.PARAGRAPH)] == [
            (0, MOST_CHARS), (MOST_CHARS, MOST_CHARS), (2 * MOST_CHARS, 5),
        ]  # fmt: skip
    text = "a.\n b\n" * (MOST_SPANS // 2 + MOST_CHARS)
    found = list(units(line(text), Unit.PARAGRAPH))
    assert len(found) == MOST_SPANS + 6
    assert all(text[start : start + len(part)] == part for start, part in found)
    assert sum(len(part.split()) for _, part in found) == len(text.split())


# ---- packages that are not there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "name", "model"),
    [
        ("fasttext.FastText", "fasttext", lambda folder: FastTextModelConfig("q", str(folder / "quality.bin"))),
        ("onnxruntime", "onnx", onnx),
    ],
)
def test_a_package_that_is_not_there_is_named_with_its_extra(folder: Path, monkeypatch, package: str, name: str, model) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"needs .* \(.*\); pip install 'olmo-train\[data_models\]'$"):
        tag(name, model(folder))


def test_an_onnx_model_that_fails_on_a_text_names_itself(folder: Path, tmp_path: Path) -> None:
    write_onnx(tmp_path / "small.onnx", np.zeros((1, 1)))
    with pytest.raises(ConfigError, match=r"small\.onnx fails on \(1, 64\) tokens: .*; export it again"):
        tag("onnx", onnx(folder, path=str(tmp_path / "small.onnx")), line("good bad"))
