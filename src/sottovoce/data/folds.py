"""Two folds of utterances that share no speaker."""

from collections.abc import Sequence


def assign_folds(speakers: Sequence[str | None]) -> list[int]:
    """Return fold 0 or 1 for each utterance; utterances of one (known) speaker share a fold, and the folds are kept level.

    If that leaves a fold empty, all are by one speaker: then the first half of the utterances is one fold and the rest the other
    (see `one_speaker`).
    """
    if one_speaker(speakers):
        return [int(i >= (len(speakers) + 1) // 2) for i in range(len(speakers))]
    counts, of_speaker, folds = [0, 0], dict[str, int](), []
    for speaker in speakers:
        fold = 0 if counts[0] <= counts[1] else 1
        if speaker is not None:
            fold = of_speaker.setdefault(speaker, fold)
        counts[fold] += 1
        folds.append(fold)
    return folds


def one_speaker(speakers: Sequence[str | None]) -> bool:
    """Return whether several utterances are all by one known speaker, so that no two folds have speakers of their own."""
    return len(speakers) > 1 and None not in speakers and len(set(speakers)) == 1
