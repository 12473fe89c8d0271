"""Languages: the model that comes with a package against the package, short texts of many languages, and a user's model."""

import sys
from pathlib import Path

import pytest

from data_tools.tag.build_models import model_files, model_problems
from data_tools.tag.language import Langid, LanguageTagger, load_langid
from data_tools.tag.model_config import LanguageConfig, ModelTaggersConfig
from olmo_train.errors import ConfigError
from tests.data_tools.tag.model_files import probabilities, write_fasttext
from tests.data_tools.tag.texts import in_pieces, line

TEXTS = {
    "en": "The committee will meet again next week to discuss the new budget.",
    "de": "Der Ausschuss trifft sich nächste Woche wieder, um den neuen Haushalt zu besprechen.",
    "fr": "Le comité se réunira de nouveau la semaine prochaine pour discuter du nouveau budget.",
    "es": "El comité se reunirá de nuevo la próxima semana para discutir el nuevo presupuesto.",
    "ru": "Комитет снова соберётся на следующей неделе, чтобы обсудить новый бюджет.",
    "zh": "委员会下周将再次开会讨论新的预算。",
    "ja": "委員会は来週再び集まり、新しい予算について話し合います。",
    "ar": "ستجتمع اللجنة مرة أخرى الأسبوع المقبل لمناقشة الميزانية الجديدة.",
    "pl": "Komisja spotka się ponownie w przyszłym tygodniu, aby omówić nowy budżet.",
}


def test_scores_are_those_of_the_package_whose_loop_is_compiled_here() -> None:
    langid = pytest.importorskip("py3langid.langid")
    theirs = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    for text in [*TEXTS.values(), " ".join(TEXTS.values()) * 300, "SHOUTED ENGLISH TEXT", "", "12345", "ﬁ e\u0301"]:
        ours = load_langid().scores(text)
        assert ours == pytest.approx(dict(theirs.rank(text)), abs=2e-4)


@pytest.mark.parametrize("language", TEXTS)
def test_a_sentence_is_known(language: str) -> None:
    (scores,) = LanguageTagger(LanguageConfig(list(TEXTS))).tag([line(TEXTS[language])])
    assert scores[language][0][2] > 0.5
    assert sum(spans[0][2] for spans in scores.values()) == pytest.approx(1, abs=1e-4)
    assert scores[language][0][:2] == [0, len(TEXTS[language])]


def test_paragraphs_have_spans_and_only_the_beginning_is_looked_at() -> None:
    text = f"{TEXTS['en']}\n\n{TEXTS['de']}"
    tagger = LanguageTagger(LanguageConfig(["en"], paragraphs=True, max_chars=len(TEXTS["en"])))
    assert tagger.types == ("en", "other", "en_paragraph", "other_paragraph")
    for made in (line(text), in_pieces(text)):
        (scores,) = tagger.tag([made])
        assert scores["en"][0][2] > 0.9
        assert scores["en"][0][1] == len(text)
        first, second = scores["en_paragraph"]
        assert (first[:2], second[:2]) == ([0, len(TEXTS["en"])], [len(TEXTS["en"]) + 2, len(text)])
        assert first[2] > 0.9 > 0.1 > second[2]
    whole = LanguageTagger(LanguageConfig(["en", "de"], max_chars=0)).tag([line(text)])[0]
    assert whole["en"][0][2] < 0.9


def test_a_users_model_takes_the_place_of_the_package(tmp_path: Path) -> None:
    words, labels = {"the": 2.0, "der": -2.0}, {"en": 1.0, "de": -1.0}
    write_fasttext(tmp_path / "lid.bin", words, labels)
    config = LanguageConfig(["en"], model=str(tmp_path / "lid.bin"))
    (scores,) = LanguageTagger(config).tag([line("the the\nder")])
    expected = probabilities("the the der", words, labels)["en"]
    assert scores == {
        "en": [[0, 11, pytest.approx(expected, abs=2e-5)]],
        "other": [[0, 11, pytest.approx(1 - expected, abs=2e-5)]],
    }
    assert model_files(ModelTaggersConfig(language=config)) == [tmp_path / "lid.bin"]


def test_settings_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    def problems(**fields: object) -> list[str]:
        return model_problems(["language"], ModelTaggersConfig(language=LanguageConfig(**fields)))  # type: ignore[arg-type]

    assert problems() == []
    assert problems(max_chars=-1) == ["models.language.max_chars=-1 is not in 0 .. 100000; 0 looks at all of a text"]
    assert problems(languages=["en", "en"]) == [
        "models.language.languages=['en', 'en'] must name each language once; `other` is what is left"
    ]
    (unknown,) = problems(languages=["english"])
    assert unknown.startswith("models.language.languages: py3langid does not know english; it knows af, am, ")
    (tmp_path / "lid.bin").write_text("no model at all")
    (problem,) = problems(model=str(tmp_path / "lid.bin"))
    assert problem.startswith(f"models.language.model: {tmp_path}/lid.bin is no fastText model")
    assert problems(model="nowhere") == [
        "models.language.model=nowhere does not exist; give the path of a file on this machine, nothing is downloaded"
    ]


def test_a_package_that_is_not_there_or_has_changed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    langid = pytest.importorskip("py3langid.langid")
    monkeypatch.setattr(langid.LanguageIdentifier, "from_model_file", lambda path: object())
    with pytest.raises(
        ConfigError, match="language knows py3langid 0.4, not the version installed: .*; install 0.4, or set model"
    ):
        Langid()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ConfigError, match=r"language needs py3langid \(.*\); pip install 'olmo-train\[data\]', or set model"):
        Langid()
