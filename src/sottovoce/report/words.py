"""Which words changed: the alignment of what was heard with what was said, and with what the original heard."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jiwer

from sottovoce.evaluation.normalize import normalize
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_utterance

LONGEST_RUN = 40  # words shown of one stretch


@dataclass(frozen=True)
class Word:
    """A stretch of words and how it compares: "equal", "substitute", "insert" or "delete" (then `text` is what is missing)."""

    text: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One utterance: what was said, and what the model and the original (None: not known) made of it, aligned with that."""

    id: str
    said: str
    heard: tuple[Word, ...]
    before: tuple[Word, ...] | None
    words: int
    errors: int
    errors_before: int | None

    @property
    def added(self) -> int:
        """Errors that the original does not make (negative: fewer)."""
        return self.errors - (self.errors_before or 0)


def aligned(said: str, heard: str) -> tuple[Word, ...]:
    """`heard` in the order of `said`, both normalized; words that are missing stand where they were said."""
    if not said:
        return (Word(heard, "insert"),) if heard else ()
    output = jiwer.process_words(said, heard)
    reference, hypothesis = output.references[0], output.hypotheses[0]
    found = []
    for chunk in output.alignments[0]:
        wanted = " ".join(reference[chunk.ref_start_idx : chunk.ref_end_idx])
        got = " ".join(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx])
        found.append(Word(_shortened(wanted if chunk.type == "delete" else got), chunk.type))
    return tuple(found)


def _shortened(text: str) -> str:
    """A loop says the same hundreds of times; its beginning is enough."""
    words = text.split()
    if len(words) <= LONGEST_RUN:
        return text
    return f"{' '.join(words[:LONGEST_RUN])} … and {len(words) - LONGEST_RUN} more words"


def worst_first(transcripts: Sequence[Transcript], against: Sequence[Transcript] | None, language: str | None = None) -> list[Compared]:
    """Utterances with a reference text, those that lost most by quantization first; ties by errors, then by id.

    `language`: of transcripts that name none.
    """
    before = {transcript.id: transcript for transcript in against or ()}
    compared = []
    for transcript in transcripts:
        spoken = transcript.language or language
        if transcript.reference is None or not normalize(transcript.reference, spoken):
            continue
        said, original = normalize(transcript.reference, spoken), before.get(transcript.id)
        score = score_utterance(transcript, language)
        compared.append(
            Compared(
                id=transcript.id,
                said=said,
                heard=aligned(said, normalize(transcript.text, spoken)),
                before=None if original is None else aligned(said, normalize(original.text, spoken)),
                words=score.words,
                errors=score.errors,
                errors_before=None if original is None else score_utterance(replace(original, language=spoken)).errors,
            )
        )
    return sorted(compared, key=lambda c: (-c.added, -c.errors, c.id))
