"""What quantization did to each utterance: losses between 0 and 1, from its transcript and the original's."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from sottovoce.errors import DataError
from sottovoce.evaluation.failures import is_loop
from sottovoce.evaluation.normalize import counts_characters, normalize, scoring_language
from sottovoce.evaluation.transcripts import Transcript


@dataclass(frozen=True, kw_only=True)
class UtteranceLosses:
    """One utterance in both systems, normalized by one language; words are characters in languages without spaces.

    `distance`: the edit distance in words between the two transcripts, of which the original's has `words`. `looped`, `empty`: the
    quantized transcript fails so and the original's does not. `reference_words`: of the text that was spoken, None if it is not known or
    has no words; `errors`, `original_errors`: the edit distances of the two transcripts from it.
    """

    id: str
    words: int
    distance: int
    looped: bool
    empty: bool
    reference_words: int | None = None
    errors: int = 0
    original_errors: int = 0

    @property
    def changed(self) -> bool:
        """Tell whether a word differs."""
        return self.distance > 0

    @property
    def disagreement(self) -> float:
        """Return the distance per word of the original, 1 at most."""
        return min(1.0, self.distance / max(1, self.words))

    @property
    def worse(self) -> bool:
        """Tell whether the quantized transcript has more errors than the original's."""
        return self.errors > self.original_errors

    @property
    def increase(self) -> float:
        """Return the word error rate of the quantized transcript minus the original's, each 1 at most; -1 to 1."""
        words = max(1, self.reference_words or 0)
        return min(1.0, self.errors / words) - min(1.0, self.original_errors / words)


def utterance_losses(
    transcripts: Sequence[Transcript], originals: Sequence[Transcript], language: str | None = None
) -> tuple[UtteranceLosses, ...]:
    """Compare transcripts with the original's of the same utterances, in the same order.

    Both are normalized by the language of the original's, else by `language`. Raises `DataError` if the utterances differ, if there are
    none, or if the original recognized no word: then nothing can get worse.
    """
    if [t.id for t in transcripts] != [t.id for t in originals]:
        raise DataError("the two systems did not transcribe the same utterances; transcribe one data set with both")
    if not transcripts:
        raise DataError("no utterance was transcribed, so nothing can be certified; give speech")
    losses = tuple(_losses(ours, theirs, language) for ours, theirs in zip(transcripts, originals, strict=True))
    if not any(loss.words for loss in losses):
        raise DataError(
            f"the original recognized no word in {len(losses)} utterances, so agreement with it proves nothing; check that its folder "
            "is whole, and that the language is right"
        )
    return losses


def edit_distance(one: str, other: str) -> int:
    """Return the least number of words to substitute, insert and delete to make `other` of `one`; both normalized."""
    if not one or not other:
        return len(one.split()) + len(other.split())
    counts = jiwer.process_words(one, other)
    return int(counts.substitutions + counts.insertions + counts.deletions)


def _losses(ours: Transcript, theirs: Transcript, language: str | None) -> UtteranceLosses:
    code = scoring_language(theirs.language or language)
    by_character = counts_characters(code)
    quantized, original = normalize(ours.text, code), normalize(theirs.text, code)
    spoken = None if theirs.reference is None else normalize(theirs.reference, code)
    return UtteranceLosses(
        id=ours.id,
        words=len(original.split()),
        distance=edit_distance(original, quantized),
        looped=is_loop(quantized, characters=by_character) and not is_loop(original, characters=by_character),
        empty=bool(original) and not quantized,
        reference_words=len(spoken.split()) if spoken else None,
        errors=edit_distance(spoken, quantized) if spoken else 0,
        original_errors=edit_distance(spoken, original) if spoken else 0,
    )
