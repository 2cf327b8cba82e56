"""A gate: does a model add failures to those of the original?"""

from collections.abc import Mapping
from dataclasses import dataclass

from sottovoce.errors import DataError
from sottovoce.evaluation.failures import FAILURES
from sottovoce.evaluation.wer import Score


@dataclass(frozen=True)
class Gate:
    """The failures that a system adds to those of the original.

    `added`: for each kind of failure, ids that fail and did not fail in the original. The gate is open if no kind was added more
    than `tolerance` times.
    """

    added: Mapping[str, tuple[str, ...]]
    tolerance: int

    @property
    def open(self) -> bool:
        """Tell whether every kind of failure is within the tolerance."""
        return all(len(ids) <= self.tolerance for ids in self.added.values())


def gate(score: Score, reference: Score, *, tolerance: int = 0) -> Gate:
    """Compare the failures of two scores of the same data.

    Raises `DataError` if the original recognized no word: whatever fails in another system failed there as well.
    """
    if reference.utterances and all(utterance.empty for utterance in reference.utterances):
        raise DataError("the original recognized no word, so a gate against it proves nothing; check that its folder is whole")
    added = {
        failure: tuple(name for name in getattr(score, failure) if name not in set(getattr(reference, failure))) for failure in FAILURES
    }
    return Gate(added, tolerance)
