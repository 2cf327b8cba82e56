"""The speech of a certificate: every recording read once, before any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sottovoce.api.inputs import Sources
from sottovoce.data.audio import SAMPLE_RATE, recording_hash
from sottovoce.data.dataset import DataSet, Utterance, need_texts
from sottovoce.data.load import load_data, load_each
from sottovoce.errors import AudioError, DataError
from sottovoce.system.paths import last_part


@dataclass(frozen=True, eq=False, kw_only=True)
class CertifiedSpeech:
    """The recordings that can be used, corpus by corpus, with the hash and the seconds of each, in the order of `data`."""

    data: DataSet
    corpora: tuple[tuple[str, tuple[Utterance, ...]], ...]
    hashes: dict[str, str]
    seconds: dict[str, float]
    left_out: dict[str, str]


def recording_hashes(audio: Sources) -> tuple[str, ...]:
    """Return the hashes of all usable recordings, by which manifests know them. Raises `DataError` as `certify` does."""
    return tuple(read_speech(audio).hashes.values())


def read_speech(audio: Sources, *, labelled: Sequence[str] = ()) -> CertifiedSpeech:
    """Read every recording once, before any model: what can be used, and what each is called whatever its name.

    `labelled`: limits that need texts. Raises `DataError` if there are some and no text is known, before any recording is read.
    """
    sets = load_each([audio] if isinstance(audio, str | Path | DataSet) else audio, load_data)
    if labelled:
        everything = DataSet(" + ".join(data.name for data in sets), tuple(utterance for data in sets for utterance in data))
        need_texts(everything, f"a limit of {' and '.join(labelled)}", "the other limits need no texts")
    hashes, seconds, left_out, known = dict[str, str](), dict[str, float](), dict[str, str](), dict[str, str]()
    for utterance in (utterance for data in sets for utterance in data):
        try:
            samples = utterance.samples()
        except AudioError as exc:
            _leave_out(left_out, utterance, str(exc))
            continue
        digest = recording_hash(samples)
        if (other := known.setdefault(digest, utterance.id)) != utterance.id:
            raise DataError(f"{utterance.id} is the same recording as {other}; give every recording once, since bounds count draws")
        hashes[utterance.id], seconds[utterance.id] = digest, len(samples) / SAMPLE_RATE
    usable = [(_corpus_name(data.name), tuple(utterance for utterance in data if utterance.id in hashes)) for data in sets]
    usable = [(name, utterances) for name, utterances in usable if utterances]
    if not usable:
        reasons = "".join(f"; the first: {reason}" for reason in list(left_out.values())[:1])
        raise DataError(f"no recording can be used, so nothing can be certified; give speech{reasons}")
    chosen = tuple(utterance for _, utterances in usable for utterance in utterances)
    name = " + ".join(name for name, _ in usable)
    return CertifiedSpeech(data=DataSet(name, chosen), corpora=tuple(usable), hashes=hashes, seconds=seconds, left_out=left_out)


def _leave_out(left_out: dict[str, str], utterance: Utterance, reason: str) -> None:
    """Note that a recording cannot be used, by names that say nothing of the machine: certificates are published."""
    if isinstance(utterance.audio, Path):
        reason = reason.replace(str(utterance.audio), utterance.audio.name)
    name = last_part(utterance.id) if Path(utterance.id).is_absolute() else utterance.id
    same = sum(other.partition(" (")[0] == name for other in left_out)
    left_out[f"{name} ({same + 1})" if same else name] = reason


def _corpus_name(name: str) -> str:
    """Return the name of a data set without a path; one of the Hub (OWNER/NAME) as it is."""
    return last_part(name) if Path(name).is_absolute() else name
