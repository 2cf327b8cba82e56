"""Certificates: losses by hand, the triangle inequality, greedy identity, and statements that do not depend on order or names."""

import random
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import DataError, OutputError, RecipeError
from sottovoce.evaluation.bounds import betting_bound, clopper_pearson_bound, hoeffding_bentkus_bound
from sottovoce.evaluation.certificate import (
    Certificate,
    Corpus,
    check_confidence,
    make_statements,
    read_certificate,
    write_certificate,
)
from sottovoce.evaluation.certificate_words import CAPPED, assumptions, rate_text, scope, sentences, statement_row
from sottovoce.evaluation.kl_divergence import hidden_states
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.word_losses import UtteranceLosses, edit_distance, utterance_losses
from tests.conftest import make_tiny

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=9).map(" ".join)


def heard(name: str, text: str, reference: str | None = None, language: str | None = None) -> Transcript:
    return Transcript(id=name, text=text, tokens=(), duration_s=1.0, reference=reference, language=language)


def slow_distance(one: list[str], other: list[str]) -> int:
    """Wagner and Fischer's recursion, as it is written."""
    if not one or not other:
        return len(one) + len(other)
    table = [[i + j if i * j == 0 else 0 for j in range(len(other) + 1)] for i in range(len(one) + 1)]
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            kept = table[i - 1][j - 1] + (one[i - 1] != other[j - 1])
            table[i][j] = min(kept, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_the_words_that_differ_bound_every_change_of_errors(reference: str, original: str, quantized: str) -> None:
    distance = edit_distance(original, quantized)
    assert distance == slow_distance(original.split(), quantized.split()) == edit_distance(quantized, original)
    assert abs(edit_distance(reference, quantized) - edit_distance(reference, original)) <= distance
    if reference and original:
        (loss,) = utterance_losses([heard("u", quantized)], [heard("u", original, reference)])
        words = len(reference.split())
        assert abs(loss.increase) <= min(1.0, distance / words) + 1e-12
        assert loss.worse == (edit_distance(reference, quantized) > edit_distance(reference, original))
        assert loss.changed == (original != quantized)


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_errors_counted_as_words_that_differ_are_change_by_no_more(reference: str, original: str, quantized: str) -> None:
    """Also where the original's transcript is empty, which counts as one word, and where the file's is longer than it."""
    loss, _ = utterance_losses([heard("u", quantized), heard("v", "a")], [heard("u", original), heard("v", "a")])
    most = max(1, len(original.split()))
    counted = [min(edit_distance(reference, text), most) for text in (original, quantized)]
    assert abs(counted[1] - counted[0]) <= loss.disagreement * most + 1e-12


def certified(losses: list[UtteranceLosses]) -> Certificate:
    corpus = Corpus(name="d", utterances=len(losses), seconds=1, speakers=0, unnamed=len(losses), changed=0, disagreement=0)
    return Certificate(
        checkpoint="q", digest="0", bytes=1, runtime="torch", reference="o", confidence=0.95, seed=0,
        statements=make_statements(losses, [None] * len(losses)), corpora=(corpus,), languages=("en",), decodings=("greedy",), speech="0",
        calibration="none", shared_speakers=(), earlier_looks=0, environment={}, left_out={},
    )  # fmt: skip


def test_what_is_said_of_errors_without_texts() -> None:
    """A doubled word error rate can go with few changed words: the original recognizes ten words where one was spoken."""
    without, with_texts = certified(some_losses(20, labelled=False)), certified(some_losses(20))
    clause = "the number of errors, counted in the same way, changes by no more, up or down"
    said = " ".join(sentences(without))
    assert "words of the original's transcripts are changed, added or left out, and " + clause in said
    assert "no word error rate" not in said
    assert "there is no bound of the word error rate" in " ".join(assumptions(without))
    assert clause not in " ".join(sentences(with_texts))
    assert "over all words, the word error rate rises by at most" in " ".join(sentences(with_texts))
    for one in (without, with_texts):
        assert sentences(one)[-1] == CAPPED
        assert "An empty transcript of the original's counts as one word." in " ".join(assumptions(one))
    chosen = replace(without, chosen_among=2, limits={"changed": 0.5})
    assert CAPPED not in sentences(chosen)
    assert sentences(replace(chosen, limits={"disagreement": 0.5}))[-1] == CAPPED


def test_losses_by_hand() -> None:
    loop = "again and again " * 12
    ours = [heard("same", "The cat sat."), heard("word", "the dog sat"), heard("loop", loop), heard("empty", ""), heard("both", loop)]
    theirs = [
        heard("same", "the cat sat", "the cat sat"), heard("word", "the cat sat", "the cat sat"), heard("loop", "again", "again"),
        heard("empty", "red green", "red blue"), heard("both", loop),
    ]  # fmt: skip
    losses = {loss.id: loss for loss in utterance_losses(ours, theirs)}
    assert (losses["same"].changed, losses["same"].disagreement) == (False, 0.0)
    assert (losses["word"].disagreement, losses["word"].increase, losses["word"].worse) == (1 / 3, 1 / 3, True)
    assert (losses["loop"].looped, losses["loop"].disagreement, losses["loop"].increase) == (True, 1.0, 1.0)
    assert (losses["empty"].empty, losses["empty"].errors, losses["empty"].original_errors) == (True, 2, 1)
    assert not losses["both"].looped  # the original loops too
    assert losses["both"].reference_words is None
    chinese = utterance_losses([heard("u", "你好吗")], [heard("u", "你好", language="zh")])
    assert (chinese[0].words, chinese[0].distance) == (2, 1)


def test_losses_that_prove_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="did not transcribe the same"):
        utterance_losses([heard("a", "x")], [heard("b", "x")])
    with pytest.raises(DataError, match="no utterance"):
        utterance_losses([], [])
    with pytest.raises(DataError, match="recognized no word"):
        utterance_losses([heard("a", "x")], [heard("a", "...")])


def some_losses(count: int, *, labelled: bool = True) -> list[UtteranceLosses]:
    chance = random.Random(0)  # noqa: S311 - no secret
    found = []
    for i in range(count):
        distance = chance.choice([0, 0, 0, 1, 2])
        reference = 10 if labelled else None
        found.append(
            UtteranceLosses(
                id=f"u{i}",
                words=chance.randint(5, 20),
                distance=distance,
                looped=i == 7,
                empty=False,
                reference_words=reference,
                errors=1 + distance,
                original_errors=1,
            )  # fmt: skip
        )
    return found


def test_statements() -> None:
    losses, speakers = some_losses(60), [f"s{i % 6}" if i < 54 else None for i in range(60)]
    statements = {(s.loss, s.unit): s for s in make_statements(losses, speakers)}
    changed = statements["changed", "utterance"]
    assert changed.estimate == np.mean([loss.changed for loss in losses])
    assert changed.method == "Clopper-Pearson"
    assert statements["looped", "utterance"].bound > 1 / 60
    by_words = statements["disagreement", "word"]
    assert by_words.estimate == pytest.approx(sum(loss.distance for loss in losses) / sum(loss.words for loss in losses))
    assert statements["wer_increase", "utterance"].estimate == pytest.approx(np.mean([loss.distance / 10 for loss in losses]))
    assert statements["disagreement", "speaker"].n == 6
    for statement in statements.values():
        assert statement.estimate < statement.bound <= 1
        assert statement.hoeffding_bentkus is None or statement.estimate < statement.hoeffding_bentkus
    # Speakers are fewer than utterances, so less is known.
    assert statements["disagreement", "speaker"].bound > statements["disagreement", "utterance"].bound
    shuffled = [losses[i] for i in reversed(range(60))]
    assert make_statements(shuffled, speakers[::-1]) == tuple(statements.values())
    assert make_statements(losses, speakers, seed=1) != tuple(statements.values())
    wider = {(s.loss, s.unit): s.bound for s in make_statements(losses, speakers, confidence=0.99)}
    assert all(wider[key] >= statement.bound for key, statement in statements.items())


def test_the_bound_over_speakers_holds_where_many_utterances_go_with_few_errors() -> None:
    """Half of the speakers have 30 utterances with few changes, half have one with many: the order of the bets must not show it."""
    generator, misses, draws = np.random.default_rng(0), 0, 20
    for draw in range(draws):
        losses, speakers = list[UtteranceLosses](), list[str | None]()
        for speaker in range(66):
            often = generator.random() < 0.5
            for _ in range(30 if often else 1):
                distance = int(generator.binomial(20, 0.05 if often else 0.45))
                losses.append(UtteranceLosses(id=f"{len(losses)}", words=20, distance=distance, looped=False, empty=False))
                speakers.append(f"s{speaker}")
        found = {(s.loss, s.unit): s.bound for s in make_statements(losses, speakers, seed=draw)}
        misses += found["disagreement", "speaker"] < (0.05 + 0.45) / 2
    # If each is missed with 5 %, 7 of 20 have probability 3e-5. In order of first appearance nearly all are missed.
    assert misses < 7


def test_statements_without_texts_and_with_one_speaker() -> None:
    found = {(s.loss, s.unit) for s in make_statements(some_losses(20, labelled=False), ["one"] * 20)}
    assert found == {
        ("changed", "utterance"), ("disagreement", "utterance"), ("disagreement", "word"), ("looped", "utterance"), ("empty", "utterance"),
    }  # fmt: skip
    (half,) = [s for s in make_statements(some_losses(20)[:10] + some_losses(20, labelled=False)[10:], [None] * 20) if s.loss == "worse"]
    assert half.n == 10


def test_a_fall_of_the_error_rate_is_not_certified() -> None:
    better = [replace(loss, errors=0, original_errors=5) for loss in some_losses(300)]
    bound = next(s for s in make_statements(better, [None] * 300) if (s.loss, s.unit) == ("wer_increase", "utterance"))
    assert bound.estimate == -0.5
    assert bound.bound == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("confidence", [0.4, 1.0, float("nan")])
def test_a_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(RecipeError, match="out of range"):
        make_statements(some_losses(3), [None] * 3, confidence=confidence)


def test_equal_choices_on_the_originals_transcript_are_an_equal_transcript() -> None:
    """Greedy identity: teacher-forced on the original's transcript, the same token wins everywhere exactly if the transcripts are equal."""
    original = make_tiny(layers=1)
    settings_ = original.network.generation_config
    generator, outcomes = np.random.default_rng(0), []
    recordings = [generator.standard_normal(16000).astype(np.float32) * 0.1 for _ in range(4)]
    features = original.features(recordings)
    wanted = original.greedy_decode(original.encode(features), None, 8)
    for noise in (1e-4, 3e-3, 3e-2):
        other = make_tiny(layers=1)
        torch.manual_seed(1)
        for parameter in other.network.parameters():
            parameter += noise * torch.randn_like(parameter) * parameter.std()
        encoded = other.encode(features)
        states = hidden_states(other, encoded, [tokens for tokens, _ in wanted], None)
        found = other.greedy_decode(encoded, None, 8)
        for (tokens, ended), (others, _), state in zip(wanted, found, states, strict=True):
            scores = other.module(other.head)(state)
            scores[:, settings_.suppress_tokens] = -torch.inf
            scores[0, settings_.begin_suppress_tokens] = -torch.inf
            chosen = scores.argmax(-1).tolist()
            same = chosen == [*tokens, settings_.eos_token_id] if ended else chosen[: len(tokens)] == tokens
            assert same == (others == tokens)
            outcomes.append(same)
    assert 0 < sum(outcomes) < len(outcomes)


def test_every_statement_is_the_bound_of_its_losses() -> None:
    """From the formulas of `evaluation.bounds`, in the order of the seed: over utterances, over words (64 at most) and over speakers."""
    losses = [replace(loss, words=loss.words * (10 if i % 9 == 0 else 1)) for i, loss in enumerate(some_losses(40))]
    losses[3] = replace(losses[3], words=0, distance=1)  # counts as one word
    speakers = [f"s{i % 7}" if i % 5 else None for i in range(40)]
    found = {(s.loss, s.unit): s for s in make_statements(losses, speakers, confidence=0.9, seed=4)}
    by_name = {loss.id: loss for loss in losses}

    def in_order(names: Collection[str]) -> list[str]:
        names = sorted(names)
        return [names[i] for i in np.random.default_rng(4).permutation(len(names))]

    rows = [by_name[name] for name in in_order(by_name)]
    for loss, events in (("changed", sum(row.distance > 0 for row in rows)), ("looped", 1), ("empty", 0)):
        statement = found[loss, "utterance"]
        assert statement.bound == clopper_pearson_bound(events, 40, 1 - 0.9)
        assert (statement.estimate, statement.n, statement.method) == (events / 40, 40, "Clopper-Pearson")
        values = np.array([1.0] * events + [0.0] * (40 - events))
        assert statement.hoeffding_bentkus == pytest.approx(hoeffding_bentkus_bound(values, 1 - 0.9))
    shares = np.array([min(1.0, row.distance / max(1, row.words)) for row in rows])
    assert found["disagreement", "utterance"].bound == float(betting_bound(shares, 1 - 0.9))
    assert found["disagreement", "utterance"].hoeffding_bentkus == pytest.approx(hoeffding_bentkus_bound(shares, 1 - 0.9))
    weights = np.array([min(64, max(1, row.words)) / 64 for row in rows])
    words = found["disagreement", "word"]
    assert words.bound == float(betting_bound(shares * weights, 1 - 0.9, weights=weights))
    assert words.estimate == pytest.approx((shares * weights).sum() / weights.sum())
    assert words.hoeffding_bentkus is None
    rises = np.array([row.distance / 10 for row in rows])
    rise, tenths = found["wer_increase", "utterance"], np.full(40, 10 / 64)
    assert rise.bound == pytest.approx(2 * float(betting_bound((rises + 1) / 2, 1 - 0.9, floor=0.5)) - 1)
    assert rise.hoeffding_bentkus == pytest.approx(2 * hoeffding_bentkus_bound((rises + 1) / 2, 1 - 0.9) - 1)
    by_words = betting_bound((rises + 1) / 2 * tenths, 1 - 0.9, weights=tenths, floor=0.5)
    assert found["wer_increase", "word"].bound == pytest.approx(2 * float(by_words) - 1)
    own = {name: [loss for loss, speaker in zip(losses, speakers, strict=True) if speaker == name] for name in {s for s in speakers if s}}
    means = np.array([np.mean([loss.disagreement for loss in own[name]]) for name in in_order(own)])
    assert found["disagreement", "speaker"].bound == pytest.approx(float(betting_bound(means, 1 - 0.9)))
    assert found["disagreement", "speaker"].n == 7


def test_a_bound_over_speakers_needs_two() -> None:
    for names, count in ((["a"] * 3, 0), (["a", "b", None], 2), ([None] * 3, 0)):
        units = [s.n for s in make_statements(some_losses(3, labelled=False), names) if s.unit == "speaker"]
        assert units == [count] * (4 if count else 0)


def test_a_fall_has_no_bound_below_zero_by_any_method() -> None:
    better = [replace(loss, errors=0, original_errors=10) for loss in some_losses(30)]
    found = {(s.loss, s.unit): s for s in make_statements(better, [f"s{i % 6}" for i in range(30)])}
    for unit in ("utterance", "word", "speaker"):
        statement = found["wer_increase", unit]
        assert (statement.estimate, statement.bound) == (-1.0, pytest.approx(0.0, abs=1e-9))
        assert statement.hoeffding_bentkus in (None, 0.0)


@pytest.mark.parametrize(("confidence", "taken"), [(0.5, True), (0.999, True), (0.499, False), (1.0, False)])
def test_the_ends_of_confidences(confidence: float, taken: bool) -> None:
    with nullcontext() if taken else pytest.raises(RecipeError, match=f"a confidence of {confidence} is out of range"):
        check_confidence(confidence)


def test_a_limit_is_exceeded_by_more_alone() -> None:
    without = certified(some_losses(20, labelled=False))
    statement = without.statement("changed")
    assert statement is not None
    assert statement.unit == "utterance"
    assert without.exceeded({"changed": statement.bound, "empty": 0.0}) == ("empty",)
    assert without.exceeded({"changed": statement.bound - 1e-9}) == ("changed",)
    assert without.statement("disagreement", "speaker") is None
    with pytest.raises(DataError, match="nothing is known of 'worse' here"):
        without.exceeded({"worse": 1.0})
    assert replace(without, corpora=without.corpora * 2).utterances == 40


def test_a_certificate_survives_its_file(tmp_path: Path) -> None:
    made = replace(certified(some_losses(20)), limits={"changed": 0.5}, languages=("zh",), checkpoint="né")
    write_certificate(tmp_path / "c.json", made)
    assert read_certificate(tmp_path / "c.json") == made
    assert "né" in (tmp_path / "c.json").read_text(encoding="utf-8")
    with pytest.raises(OutputError, match="the certificate cannot be written"):
        write_certificate(tmp_path, made)
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(DataError, match="is not a certificate"):
            read_certificate(tmp_path / "bad.json")
    with pytest.raises(DataError, match="is not a certificate"):
        read_certificate(tmp_path / "none.json")


def test_what_is_said_word_for_word() -> None:
    made = certified(some_losses(20, labelled=False))
    bound = {(s.loss, s.unit): s.bound for s in made.statements}
    first, changed, differs, by_words, looped, empty, last = sentences(made)
    assert (
        first
        == "On speech like d (20 utterances, no speaker named, en, greedy decoding), each of the following holds with 95 % confidence:"
    )
    assert changed == f"at most {100 * bound['changed', 'utterance']:.2f} % of utterances get another transcript than the original's;"
    assert differs.startswith(
        f"an utterance differs from the original's in at most {100 * bound['disagreement', 'utterance']:.2f} per 100 words"
    )
    assert by_words.startswith(f"over all words, at most {100 * bound['disagreement', 'word']:.2f} per 100 words of the original's")
    assert looped.endswith("of utterances loop where the original's do not;")
    assert empty == f"at most {100 * bound['empty', 'utterance']:.2f} % of utterances come out empty where the original's do not."
    assert last == CAPPED
    labelled = certified(some_losses(20))
    rises = [one for one in sentences(labelled) if "the word error rate" in one]
    statement = labelled.statement("wer_increase")
    assert statement is not None
    assert rises[0] == f"the word error rate of an utterance rises by at most {100 * statement.bound:.2f} points on average;"
    assert [rate_text(loss, 0.0123) for loss in ("changed", "disagreement", "wer_increase")] == ["1.23 %", "1.23 per 100", "+1.23 points"]
    chosen = replace(made, chosen_among=3, confidence=0.975, limits={"changed": 0.5, "disagreement": 0.02})
    assert sentences(chosen) == (
        "On speech like d (20 utterances, no speaker named, en, greedy decoding), the following holds with 97.5 % confidence of this file, "
        "which was chosen out of 3 by fixed-sequence testing: utterances with another transcript than the original's: at most 50.00 %; "
        "words that differ from the original's: at most 2.00 per 100.",
        CAPPED,
    )


@pytest.mark.parametrize(
    ("speakers", "unnamed", "wanted"),
    [(2, 0, "2 speakers"), (1, 1, "1 speaker and 1 utterance of unnamed ones"), (2, 3, "2 speakers and 3 utterances of unnamed ones"),
     (0, 3, "no speaker named"), (0, 0, "0 speakers")],
)  # fmt: skip
def test_the_scope_names_the_speech(speakers: int, unnamed: int, wanted: str) -> None:
    made = certified(some_losses(20))
    corpus = replace(made.corpora[0], speakers=speakers, unnamed=unnamed)
    made = replace(made, corpora=(corpus,), languages=("de", "en"), decodings=("fallback", "greedy"))
    assert scope(made) == f"20 utterances, {wanted}, de, en, fallback, greedy decoding"
    both = replace(made, corpora=(corpus, corpus))
    assert scope(both).startswith("40 utterances, ")
    assert ("this mix of speech" in assumptions(both)[0], "this speech" in assumptions(made)[0]) == (True, True)


def test_assumptions_say_what_is_known() -> None:
    made = certified(some_losses(20, labelled=False))
    text = " ".join(assumptions(made))
    assert "the 5 over utterances and words hold all at once with 75 % at least" in text
    assert "no two speakers are named here" in text
    assert "made without calibration speech" in text
    assert "characters" not in text
    assert "Other settings" not in text
    assert "encoder context" not in text
    assert "counts as more than 64 words" in text
    assert "0 % at least" in " ".join(assumptions(replace(made, confidence=0.6)))  # five times 40 % are more than all
    more = replace(
        made, earlier_looks=2, calibration="disjoint", shared_speakers=("a", "b"), languages=("en", "ja"), context="+16", chosen_among=2,
        statements=make_statements(some_losses(20), [f"s{i % 4}" if i else None for i in range(20)]),
        corpora=(replace(made.corpora[0], speakers=4, unnamed=1),),
    )  # fmt: skip
    text = " ".join(assumptions(more))
    assert "the 8 over utterances and words hold all at once with 60 % at least" in text
    assert "the bounds over 4 speakers need no such thing; 1 utterances that name no speaker are left out of them." in text
    assert "have no recording in common" in text
    assert "one in the calibration speech: a, b." in text
    assert "the words are characters" in text
    assert "decoded as here (greedy, encoder context +16)" in text
    assert "measured on this speech before: 2. If this one was chosen because of what they showed, its confidence is 85 %, not 95 %" in text
    assert "The choice vouches for its limits alone" in text
    assert "no bound of the word error rate" not in text
    assert "its confidence is 0 %" in " ".join(assumptions(replace(more, earlier_looks=30)))
    assert "left out of them" not in " ".join(assumptions(replace(more, corpora=made.corpora[:0])))
    assert "does not say what it was calibrated on" in " ".join(assumptions(replace(more, calibration="unknown")))


def test_rows_of_the_table() -> None:
    found = {(s.loss, s.unit): statement_row(s) for s in make_statements(some_losses(20), ["a", "b"] * 10)}
    what, over, seen, bound, beside = found["changed", "utterance"]
    assert (what, over) == ("utterances with another transcript than the original's", "20 utterances")
    assert seen.endswith(" %")
    assert bound.endswith(" % (Clopper-Pearson)")
    assert beside.endswith(" %")
    assert (found["disagreement", "word"][1], found["disagreement", "word"][4]) == ("20 utterances, by words", "")
    assert found["disagreement", "speaker"][1] == "2 speakers"
    assert found["wer_increase", "speaker"][3].endswith(" points (betting)")


def test_losses_of_empty_and_unlabelled_transcripts() -> None:
    """A text without words is none; an original without words counts as one."""
    ours = [heard("a", "x y"), heard("b", "x y z"), heard("c", ""), heard("d", "x")]
    theirs = [heard("a", "", "..."), heard("b", "x", "x"), heard("c", "", "x"), heard("d", "x y", "y")]
    found = {loss.id: loss for loss in utterance_losses(ours, theirs)}
    assert (found["a"].disagreement, found["a"].reference_words, found["a"].increase) == (1.0, None, 0.0)
    assert (found["b"].disagreement, found["b"].errors, found["b"].increase, found["b"].worse) == (1.0, 2, 1.0, True)
    assert (found["c"].empty, found["c"].changed, found["c"].worse, found["c"].increase) == (False, False, False, 0.0)
    assert (found["d"].errors, found["d"].original_errors, found["d"].increase, found["d"].worse) == (1, 1, 0.0, False)
    many = UtteranceLosses(id="m", words=4, distance=3, looped=False, empty=False, reference_words=2, errors=1, original_errors=5)
    assert (many.disagreement, many.increase) == (0.75, -0.5)
    german = utterance_losses([heard("u", "Hute")], [heard("u", "Hüte")], "de")
    assert (german[0].distance, utterance_losses([heard("u", "Hute")], [heard("u", "Hüte")])[0].distance) == (1, 0)
