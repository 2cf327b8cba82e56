"""Normalization by language: letters and marks stay, spaces and punctuation do not make or unmake errors."""

import unicodedata

import pytest

from sottovoce.evaluation.normalize import counts_characters, normalize, plain_word, scoring_language
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts


def wer(reference: str, text: str, language: str | None) -> float:
    return score_transcripts([Transcript(id="u", text=text, tokens=(), duration_s=1.0, reference=reference, language=language)]).wer


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "rate"),
    [
        ("de", "um den See, die Hüte", "den See, die Hute", 2 / 5),
        ("de", "Die Maße stimmen.", "die Masse stimmen", 1 / 3),
        ("pt", "Não é o avô, é a avó.", "nao e o avo e a avo", 5 / 7),
        ("fr", "Où est l'été ?", "ou est l'ete", 2 / 4),
        ("es", "el año pasado", "el ano pasado", 1 / 3),
        ("hi", "मैं हिन्दी बोलता हूँ।", "मैं हिन्दी बोलता हूँ", 0.0),
        ("hi", "किताब", "कताब", 1.0),  # a vowel sign is missing
        ("vi", "má mà mạ", "ma ma ma", 1.0),
        ("tr", "IŞIK açık", "ışık açık", 0.0),
        ("tr", "ılık", "ilik", 1.0),
        ("ru", "ёлка", "елка", 1.0),
        ("ar", "كِتَابٌ جَدِيدٌ", "كتاب جديد", 0.0),  # short vowels may be left out
        ("ar", "كتاب", "كتب", 1.0),  # a letter may not
        ("en", "The color of 20 theatres", "the colour of twenty theaters", 0.0),
        (None, "It's a naïve idea", "it is a naive idea", 0.0),
    ],
)
def test_rates_by_language(language: str | None, reference: str, hypothesis: str, rate: float) -> None:
    assert wer(reference, hypothesis, language) == pytest.approx(rate)
    assert wer(unicodedata.normalize("NFD", reference), hypothesis, language) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "rate"),
    [
        ("ja", "東京は、日本の首都です。", "東京は日本の首都でした", 2 / 10),  # で, した for す: one substituted, one inserted
        ("zh", "今天 天气 很好", "今天天汽很好", 1 / 6),
        ("th", "สวัสดีครับ", "สวัสดี ครับ", 0.0),
        ("th", "น้ำ", "นา", 2 / 4),  # น ้ ํ า (sara am is two characters): tone mark and ring are missing
        ("km", "សួស្តី", "សួស្តី", 0.0),
    ],
)
def test_characters_count_where_there_are_no_spaces(language: str, reference: str, hypothesis: str, rate: float) -> None:
    transcript = Transcript(id="u", text=hypothesis, tokens=(), duration_s=1.0, reference=reference, language=language)
    score = score_transcripts([transcript])
    assert score.metric == "CER"
    assert score.cer == score.wer == score.rate == pytest.approx(rate)
    assert score.low == score.high == pytest.approx(rate)


@pytest.mark.parametrize("language", ["zh", "ja", "th", "lo", "my", "km", "yue", "zh-TW", "Japanese", "cmn_hans_cn", "jpn"])
def test_languages_without_spaces_in_any_spelling(language: str) -> None:
    assert counts_characters(language)


def test_english_rules_are_for_english_alone() -> None:
    assert [scoring_language(name) for name in (None, "auto", "en-US", "English", "eng", "de-DE", "German", "pt_BR")] == [
        "en", "en", "en", "en", "en", "de", "de", "pt"
    ]  # fmt: skip
    assert normalize("twenty colours", "en-GB") == "20 colors"
    assert normalize("Der Arm won't", "de") == "der arm won t"


@pytest.mark.parametrize("text", ["", "...", "♪ ♪", "— ?!", "$ %", "。、", "[Musik]", "\u200b", "্"])
@pytest.mark.parametrize("language", [None, "en", "de", "ja", "th", "hi"])
def test_texts_without_letters_or_digits_are_no_word(text: str, language: str | None) -> None:
    assert normalize(text, language) == ""


def test_joiners_and_direction_marks_make_no_error() -> None:
    assert normalize("می\u200cخواهم \u200fکتاب", "fa") == "میخواهم کتاب"
    assert normalize("क्\u200dष", "hi") == "क्ष"


def test_plain_words_keep_marks_and_inner_apostrophes() -> None:
    assert [plain_word(word) for word in ("हिन्दी,", "«don't»", "'tis", "Hüte.", "--", "ﬁn")] == ["हिन्दी", "don't", "tis", "hüte", "", "fin"]
