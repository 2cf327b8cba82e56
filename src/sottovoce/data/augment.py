"""Varied speech from given speech: short clips, stretches that begin and end within a word, two clips joined, a little noise.

Everything is drawn by a seed and the utterance's id: the same recordings and seed give the same samples, byte for byte.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.data.dataset import Utterance
from sottovoce.data.usable import Recordings
from sottovoce.errors import RecipeError

KINDS = ("short", "cut", "joined")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to how many of the clips; the rest stay whole.

    `short`, `cut`, `joined`, `noise`: shares, 0 to 1; the first three exclude each other, noise comes on top of any.
    """

    short: float = 0.25  # becomes a clip of `short_s` seconds
    cut: float = 0.25  # keeps `kept` of its length, from a place within
    joined: float = 0.25  # is joined with another one, `pause_s` seconds apart
    noise: float = 0.25  # gets white noise, `noise_db` below its own power
    short_s: tuple[float, float] = (0.7, 3.0)
    kept: tuple[float, float] = (0.5, 0.9)
    pause_s: tuple[float, float] = (0.1, 0.6)
    noise_db: tuple[float, float] = (15.0, 30.0)
    longest_joined_s: float = 28.0  # two clips that last longer together are left apart

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in (*KINDS, "noise")}
        if any(not 0 <= share <= 1 for share in shares.values()) or self.short + self.cut + self.joined > 1:
            raise RecipeError(f"shares of augmented clips {shares} must be within 0 .. 1, and short, cut and joined at most 1 together")
        for name in ("short_s", "kept", "pause_s", "noise_db"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise RecipeError(f"{name} from {low} to {high}: wanted a range from a lower to a higher number, 0 at least")
        if self.short_s[0] < 0.1 or not 0 < self.kept[0] <= self.kept[1] <= 1:
            raise RecipeError(f"short clips of {self.short_s[0]} s and cuts to {self.kept} of a clip: wanted 0.1 s and 0 .. 1 at least")


def augment(recordings: Recordings, settings: Augmentation, seed: int) -> Recordings:
    """Vary recordings by `settings`. Two of one speaker that are joined make one, so no recording comes twice.

    A piece of a recording has no text: what is heard in it is to be found out. Its id says what was done: `x~short`, `x~cut`, `x+y`,
    `x~noise`.
    """
    utterances, samples = list[Utterance](), list[np.ndarray]()
    waiting = dict[tuple[str | None, str | None], int]()  # by speaker and language: the place of the clip that the next is joined to
    for utterance, whole in zip(recordings.utterances, recordings.samples, strict=True):
        chance = _generator(seed, utterance.id)
        kind = _kind(settings, chance)
        voice = utterance.speaker, utterance.language  # folds are by speaker
        place = waiting.get(voice)
        if kind == "joined" and place is not None and len(samples[place]) + len(whole) <= settings.longest_joined_s * SAMPLE_RATE:
            pause = np.zeros(round(chance.uniform(*settings.pause_s) * SAMPLE_RATE), np.float32)
            utterances[place] = _joined(utterances[place], utterance)
            samples[place] = np.concatenate([samples[place], pause, whole])
            del waiting[voice]
            continue
        if kind == "joined":
            waiting[voice] = len(utterances)
        else:
            utterance, whole = _piece(utterance, whole, kind, settings, chance)
        utterances.append(utterance)
        samples.append(whole)
    noisy = [_with_noise(u, s, settings, _generator(seed, f"{u.id}~noise")) for u, s in zip(utterances, samples, strict=True)]
    return replace(recordings, utterances=tuple(u for u, _ in noisy), samples=tuple(s for _, s in noisy))


def source_ids(name: str) -> set[str]:
    """Return the ids that the recordings behind the id of a varied or cut one may have; one whose own id has such signs gives more."""
    parts = {name, *name.split("+")}
    return parts | {part.partition(sign)[0] for part in parts for sign in ("~", "#")}


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _kind(settings: Augmentation, chance: np.random.Generator) -> str | None:
    place = chance.random()
    for kind in KINDS:
        share = getattr(settings, kind)
        if place < share:
            return kind
        place -= share
    return None


def _joined(first: Utterance, second: Utterance) -> Utterance:
    text = None if first.text is None or second.text is None else f"{first.text} {second.text}".strip()
    return replace(first, id=f"{first.id}+{second.id}", text=text)


def _piece(
    utterance: Utterance, whole: np.ndarray, kind: str | None, settings: Augmentation, chance: np.random.Generator
) -> tuple[Utterance, np.ndarray]:
    """A clip out of `whole`, or all of it if it is shorter than the clip is to be."""
    if kind is None:
        return utterance, whole
    low, high = _lengths(len(whole), kind, settings)
    length = min(len(whole), round(chance.uniform(low, high)))
    if length == len(whole):
        return utterance, whole
    # Of three places the loudest: a clip of a pause says nothing.
    starts = chance.integers(0, len(whole) - length + 1, size=3)
    start = max(map(int, starts), key=lambda start: float(np.square(whole[start : start + length], dtype=np.float64).sum()))
    return replace(utterance, id=f"{utterance.id}~{kind}", text=None), whole[start : start + length]


def _lengths(length: int, kind: str, settings: Augmentation) -> Sequence[float]:
    """The least and the greatest number of samples of a piece."""
    if kind == "short":
        return [seconds * SAMPLE_RATE for seconds in settings.short_s]
    return [max(share * length, settings.short_s[0] * SAMPLE_RATE) for share in settings.kept]


def _with_noise(
    utterance: Utterance, samples: np.ndarray, settings: Augmentation, chance: np.random.Generator
) -> tuple[Utterance, np.ndarray]:
    if chance.random() >= settings.noise:
        return utterance, samples
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    scale = np.sqrt(power) * 10 ** (-chance.uniform(*settings.noise_db) / 20)
    noise = chance.standard_normal(len(samples), dtype=np.float32) * np.float32(scale)
    return replace(utterance, id=f"{utterance.id}~noise"), samples + noise
