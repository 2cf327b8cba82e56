"""Two folds of utterances that share no speaker."""

from collections.abc import Sequence


def assign_folds(speakers: Sequence[str | None]) -> list[int]:
    """Return the fold, 0 or 1, of each utterance; utterances of one (known) speaker share a fold, and the folds are kept level."""
    counts, of_speaker, folds = [0, 0], dict[str, int](), []
    for speaker in speakers:
        fold = 0 if counts[0] <= counts[1] else 1
        if speaker is not None:
            fold = of_speaker.setdefault(speaker, fold)
        counts[fold] += 1
        folds.append(fold)
    return folds
