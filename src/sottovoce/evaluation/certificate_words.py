"""A certificate in words: what it says, and what it assumes."""

from pathlib import Path

from sottovoce.evaluation.certificate import LABELLED, MOST_WORDS, SHARES, Certificate, Loss, Statement, Unit
from sottovoce.evaluation.normalize import WITHOUT_SPACES
from sottovoce.system.counting import counted

PHRASES: dict[Loss, str] = {
    "changed": "utterances with another transcript than the original's",
    "disagreement": "words that differ from the original's",
    "looped": "utterances that loop where the original's do not",
    "empty": "utterances without a word where the original has some",
    "worse": "utterances with more errors than the original's",
    "wer_increase": "increase of the word error rate",
}
CAPPED = "No utterance counts as more wrong than it is long."
UNITS: dict[Unit, str] = {"utterance": "utterances", "word": "words", "speaker": "speakers"}


def rate_text(loss: Loss, rate: float) -> str:
    """Write a rate of `loss`: "1.23 %", for words "1.23 per 100", for an increase "+1.23 points"."""
    if loss == "wer_increase":
        return f"{100 * rate:+.2f} points"
    return f"{100 * rate:.2f} %" if loss in SHARES else f"{100 * rate:.2f} per 100"


def sentences(certificate: Certificate) -> tuple[str, ...]:
    """Return what the certificate says: its scope, then each statement over utterances and over words, last how words are counted."""
    corpora = " + ".join(corpus.name for corpus in certificate.corpora)
    confidence = _percent(certificate.confidence)
    found = [f"On speech like {corpora} ({scope(certificate)}), each of the following holds with {confidence} % confidence:"]
    if certificate.chosen_among is not None:
        limits = "; ".join(f"{PHRASES[name]}: at most {rate_text(name, limit).lstrip('+')}" for name, limit in limits_of(certificate))
        chosen = (
            f"On speech like {corpora} ({scope(certificate)}), the following holds with {confidence} % confidence of this file, which was "
            f"chosen out of {certificate.chosen_among} by fixed-sequence testing: {limits}."
        )
        return (chosen, CAPPED) if any(name not in SHARES for name, _ in limits_of(certificate)) else (chosen,)
    said = {
        "changed": "at most {} of utterances get another transcript than the original's;",
        "disagreement": "an utterance differs from the original's in at most {} words on average;",
        "looped": "at most {} of utterances loop where the original's do not;",
        "empty": "at most {} of utterances come out empty where the original's do not;",
        "worse": "at most {} of utterances get more errors than the original's;",
        "wer_increase": "the word error rate of an utterance rises by at most {} on average;",
    }
    for statement in certificate.statements:
        if statement.unit == "utterance":
            found.append(said[statement.loss].format(rate_text(statement.loss, statement.bound).lstrip("+")))
        elif statement.unit == "word" and statement.loss == "disagreement":
            text = rate_text("disagreement", statement.bound)
            # Where the spoken texts are known, the errors have bounds of their own.
            errors = "" if _labelled(certificate) else ", and the number of errors, counted in the same way, changes by no more, up or down"
            found.append(f"over all words, at most {text} words of the original's transcripts are changed, added or left out{errors};")
        elif statement.unit == "word":
            found.append(f"over all words, the word error rate rises by at most {rate_text(statement.loss, statement.bound).lstrip('+')};")
    return (*found[:-1], found[-1].removesuffix(";") + ".", CAPPED)


def scope(certificate: Certificate) -> str:
    """Return how much speech it was: "277 utterances, 52 speakers, en, greedy"."""
    speakers = sum(corpus.speakers for corpus in certificate.corpora)
    unnamed = sum(corpus.unnamed for corpus in certificate.corpora)
    people = counted(speakers, "speaker")
    if unnamed:
        people = f"{people} and {counted(unnamed, 'utterance')} of unnamed ones" if speakers else "no speaker named"
    languages, decodings = ", ".join(certificate.languages), ", ".join(certificate.decodings)
    return f"{counted(certificate.utterances, 'utterance')}, {people}, {languages}, {decodings} decoding"


def _context(certificate: Certificate) -> str:
    return "" if certificate.context == "full" else f", encoder context {certificate.context}"


def assumptions(certificate: Certificate) -> tuple[str, ...]:
    """Return what must be true for the certificate to hold, one sentence each."""
    said = sum(statement.unit != "speaker" for statement in certificate.statements)
    joint = max(0.0, 1 - said * (1 - certificate.confidence))
    speech = "this speech" if len(certificate.corpora) == 1 else "this mix of speech"
    found = [
        f"The user's speech is like {speech}: of the same kind, recorded in the same way, in the same language "
        f"({', '.join(certificate.languages)}). The certificate says nothing about other languages, accents, rooms or noise.",
        f"The transcripts are those of {Path(certificate.checkpoint).name} (sha256 {certificate.digest[:16]}) in {certificate.runtime}, "
        f"decoded as here ({', '.join(certificate.decodings)}{_context(certificate)}), compared with {certificate.reference}.",
        "Bounds over utterances take the utterances as independent. Utterances of one speaker are not quite; " + _speakers(certificate),
        f"Each statement has the confidence of {_percent(certificate.confidence)} % by itself; the {said} over utterances and words hold "
        f"all at once with {_percent(joint)} % at least.",
        "Of an utterance no more words count as wrong than the original's transcript has, or for error rates than were spoken, so a loop "
        "counts once; loops are certified apart. An empty transcript of the original's counts as one word. In bounds over words no "
        f"utterance counts as more than {MOST_WORDS} words.",
    ]
    if not _labelled(certificate):
        found.append(
            "No text of what was spoken is known, so there is no bound of the word error rate. The number of errors changes by no more "
            "than the number of words that differ, because edit distance obeys the triangle inequality. Both are shares of the original's "
            "words: if more words were recognized than were spoken, the word error rate may change by more."
        )
    if WITHOUT_SPACES.intersection(certificate.languages):
        found.append("In languages written without spaces the words are characters.")
    found.append(
        {
            "disjoint": "The calibration speech and this speech have no recording in common; their hashes were compared.",
            "none": "The file was made without calibration speech.",
            "unknown": "The file does not say what it was calibrated on. That this speech was no part of it is assumed, not checked.",
        }[certificate.calibration]
    )
    if certificate.shared_speakers:
        found.append(
            f"Speakers with the name of one in the calibration speech: {', '.join(certificate.shared_speakers)}. If they are the same "
            "people, new speakers may fare worse."
        )
    if certificate.earlier_looks:
        looks = certificate.earlier_looks + 1
        together = max(0.0, 1 - looks * (1 - certificate.confidence))
        found.append(
            f"Other settings measured on this speech before: {certificate.earlier_looks}. If this one was chosen because of what they "
            f"showed, its confidence is {_percent(together)} %, not {_percent(certificate.confidence)} %; it is untouched if not."
        )
    if certificate.chosen_among is not None:
        found.append("The choice vouches for its limits alone; the other figures are those of a file that was chosen by them.")
    return tuple(found)


def statement_row(statement: Statement) -> tuple[str, str, str, str, str]:
    """Return the cells of a table: what, over which units, on this speech, the bound with its method, Hoeffding-Bentkus beside it."""
    beside = "" if statement.hoeffding_bentkus is None else rate_text(statement.loss, statement.hoeffding_bentkus)
    return (
        PHRASES[statement.loss],
        f"{statement.n} {UNITS[statement.unit] if statement.unit != 'word' else 'utterances, by words'}",
        rate_text(statement.loss, statement.estimate),
        f"{rate_text(statement.loss, statement.bound)} ({statement.method})",
        beside,
    )


def _labelled(certificate: Certificate) -> bool:
    return any(statement.loss in LABELLED for statement in certificate.statements)


def _speakers(certificate: Certificate) -> str:
    units = [s for s in certificate.statements if s.unit == "speaker"]
    unnamed = sum(corpus.unnamed for corpus in certificate.corpora)
    if not units:
        return "no two speakers are named here, so there is no bound over speakers, and the certificate is about these speakers only."
    left_out = f"; {unnamed} utterances that name no speaker are left out of them" if unnamed else ""
    return f"the bounds over {units[0].n} speakers need no such thing{left_out}."


def limits_of(certificate: Certificate) -> list[tuple[Loss, float]]:
    """Return the limits that a choice or a check demanded, by loss."""
    return list((certificate.limits or {}).items())


def _percent(share: float) -> str:
    return f"{100 * share:.10g}"
