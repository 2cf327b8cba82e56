"""The confidence in each recognized word, how well it agrees with what is right, and two scalings that improve it.

A word's confidence is the geometric mean of its tokens' probabilities. It is compared with whether the word is right, after an
alignment with the reference. In languages without spaces a word is what one token holds (or several, where they share a character);
characters are aligned, and a word is right if all of its own are. Both scalings work on a confidence's log-odds `z`: temperature
scaling (Guo et al., arXiv 1706.04599, for two classes) gives `sigmoid(z / T)`, Platt scaling (Platt 1999) `sigmoid(a z + b)`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jiwer
import numpy as np

from sottovoce.errors import DataError
from sottovoce.evaluation.failures import text_loops
from sottovoce.evaluation.normalize import counts_characters, plain_word
from sottovoce.evaluation.recognizer import Recognizer
from sottovoce.evaluation.transcripts import Transcript

BINS = 10  # of equal width, in reliability diagrams and the expected calibration error
SMALLEST = 1e-6  # confidences are kept so far from 0 and 1
NEWTON_STEPS = 100
HALF_CHARACTER = "\ufffd"  # what tokenizers write for the bytes of a character that go on in the next token
RIDGE = 1e-6  # keeps the fit finite where right and wrong words separate perfectly


@dataclass(frozen=True)
class WordConfidence:
    """A recognized word as it is written, with the confidence that it is right, 0 to 1."""

    text: str
    confidence: float


@dataclass(frozen=True)
class ConfidenceScaling:
    """`sigmoid(slope * z + offset)` of a confidence's log-odds z. Temperature scaling has slope 1 / T and offset 0."""

    slope: float = 1.0
    offset: float = 0.0

    def apply(self, confidences: np.ndarray) -> np.ndarray:
        """Scale confidences `[n]`."""
        return _sigmoid(self.slope * log_odds(confidences) + self.offset)


UNSCALED = ConfidenceScaling()


@dataclass(frozen=True, kw_only=True)
class ConfidenceMetrics:
    """How well confidences agree with what is right.

    `expected_calibration_error`: mean distance of confidence and share of right words over bins, weighted by their size.
    `normalized_cross_entropy`: share of the entropy of "right or wrong" that the confidences explain (1: all; below 0: worse
    than always saying the mean; None where all words are right or all wrong). `bins`: mean confidence, share right, and count of
    each bin (None where it is empty).
    """

    words: int
    accuracy: float
    mean_confidence: float
    expected_calibration_error: float
    normalized_cross_entropy: float | None
    bins: tuple[tuple[float | None, float | None, int], ...]


@dataclass(frozen=True, kw_only=True)
class FittedConfidence:
    """Two scalings fitted on one half of some speech, and the metrics of all three confidences on the other half.

    `left_out`: utterances that took no part; `unusable`: recordings that could not be transcribed.
    """

    temperature: ConfidenceScaling
    platt: ConfidenceScaling
    raw_metrics: ConfidenceMetrics
    temperature_metrics: ConfidenceMetrics
    platt_metrics: ConfidenceMetrics
    fitted_words: int
    left_out: int = 0
    unusable: int = 0


def fit_to_transcripts(recognizer: Recognizer, transcripts: Sequence[Transcript], halves: Sequence[int]) -> FittedConfidence:
    """Fit both scalings on transcripts that carry references and log-probabilities.

    `halves`: for each transcript 0 to fit on, 1 to measure on. Left out and counted are loops, whose hundreds of words would outweigh the
    others (the gate is there for them), and recordings without log-probabilities. Raises `DataError` as `fit_scalings` does, and
    `ModelError` as `word_confidences` does.
    """
    labeled, used = [], []
    for transcript, half in zip(transcripts, halves, strict=True):
        if transcript.has_confidences and not text_loops(transcript.text, transcript.language):
            labeled.append(label_words(word_confidences(recognizer, transcript), transcript.reference or "", transcript.language))
            used.append(half)
    return replace(fit_scalings(labeled, used), left_out=len(transcripts) - len(used))


def fit_scalings(labeled: Sequence[tuple[np.ndarray, np.ndarray]], halves: Sequence[int]) -> FittedConfidence:
    """Fit both scalings on the words of half 0 and measure them on those of half 1.

    `labeled`: confidences `[n]` and rightness, bool `[n]`, of each utterance's words; `halves`: the half of each utterance. Raises
    `DataError` if a half has no words, or the fitted half's words are all right or all wrong.
    """
    parts = []
    for half in (0, 1):
        own = [pair for pair, h in zip(labeled, halves, strict=True) if h == half]
        if not sum(len(confidences) for confidences, _ in own):
            raise DataError("too little speech: words are needed to fit a scaling and others to measure it")
        parts.append((np.concatenate([c for c, _ in own]), np.concatenate([r for _, r in own])))
    (fitted, fitted_right), (held_out, held_out_right) = parts
    temperature, platt = fit_temperature(fitted, fitted_right), fit_platt(fitted, fitted_right)
    return FittedConfidence(
        temperature=temperature,
        platt=platt,
        raw_metrics=confidence_metrics(held_out, held_out_right),
        temperature_metrics=confidence_metrics(temperature.apply(held_out), held_out_right),
        platt_metrics=confidence_metrics(platt.apply(held_out), held_out_right),
        fitted_words=len(fitted),
    )


def word_confidences(recognizer: Recognizer, transcript: Transcript, scaling: ConfidenceScaling = UNSCALED) -> list[WordConfidence]:
    """Return the words of a transcript that `recognizer` made with `confidence=True`, each with its scaled confidence.

    A word's confidence is the geometric mean of its tokens' probabilities; `scaling` is applied to it. Raises `DataError` if the
    transcript carries no log-probabilities, and `ModelError` if the runtime does not tell how its tokens make words.
    """
    if not transcript.has_confidences:
        raise DataError(
            f"{transcript.id}: {len(transcript.tokens)} tokens with {len(transcript.log_probabilities)} log-probabilities; "
            "transcribe with confidences, and recordings that fit one pass"
        )
    words = _split(recognizer, transcript)
    raw = np.array([math.exp(sum(logs) / len(logs)) for _, logs in words])
    scaled = raw if scaling == UNSCALED else scaling.apply(raw)
    return [WordConfidence(text, float(confidence)) for (text, _), confidence in zip(words, scaled, strict=True)]


def _split(recognizer: Recognizer, transcript: Transcript) -> list[tuple[str, list[float]]]:
    """Split a transcript into words, each with the log-probabilities of its tokens."""
    tokens, logs = transcript.tokens, transcript.log_probabilities
    if not counts_characters(transcript.language):
        return recognizer.split_words(tokens, logs)
    words, start = list[tuple[str, list[float]]](), 0
    for end in range(1, len(tokens) + 1):
        found = recognizer.split_words(tokens[start:end], logs[start:end])
        if end == len(tokens) or not (found and found[-1][0].endswith(HALF_CHARACTER)):
            words, start = words + found, end
    return words


def label_words(words: Sequence[WordConfidence], reference: str, language: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences `[n]` and whether each word is right, bool `[n]`; words that are only punctuation are left out.

    `language`: of the reference; without spaces, characters are aligned in place of words.
    """
    by_character = counts_characters(language)
    spoken = [(text, word.confidence) for word in words if (text := plain_word(word.text))]
    wanted = [text for text in map(plain_word, reference.split()) if text]
    units = [list(text) if by_character else [text] for text, _ in spoken]
    equal = np.zeros(sum(map(len, units)), dtype=bool)
    if spoken and wanted:
        output = jiwer.process_words(" ".join("".join(wanted) if by_character else wanted), " ".join(unit for own in units for unit in own))
        for chunk in output.alignments[0]:
            if chunk.type == "equal":
                equal[chunk.hyp_start_idx : chunk.hyp_end_idx] = True
    ends = np.cumsum([len(own) for own in units], dtype=int)
    right = [bool(equal[end - len(own) : end].all()) for own, end in zip(units, ends, strict=True)]
    return np.array([confidence for _, confidence in spoken]), np.array(right, dtype=bool)


def log_odds(confidences: np.ndarray) -> np.ndarray:
    """Return `log(c / (1 - c))` of confidences `[n]`, finite."""
    kept = np.clip(confidences, SMALLEST, 1 - SMALLEST)
    odds: np.ndarray = np.log(kept) - np.log1p(-kept)
    return odds


def confidence_metrics(confidences: np.ndarray, right: np.ndarray) -> ConfidenceMetrics:
    """Compare confidences `[n]` with whether the words are right, bool `[n]`. Raises `DataError` if there are none."""
    if not len(confidences):
        raise DataError("no words were recognized, so there are no confidences to measure")
    kept = np.clip(confidences, SMALLEST, 1 - SMALLEST)
    at = np.minimum((confidences * BINS).astype(int), BINS - 1)
    bins, distance = [], 0.0
    for i in range(BINS):
        inside = at == i
        count = int(inside.sum())
        mean, share = (float(confidences[inside].mean()), float(right[inside].mean())) if count else (None, None)
        bins.append((mean, share, count))
        distance += count * abs(mean - share) if mean is not None and share is not None else 0.0
    accuracy = float(right.mean())
    entropy = -float(np.where(right, np.log(kept), np.log1p(-kept)).mean())
    whole = 0.0 if accuracy in (0.0, 1.0) else -(accuracy * math.log(accuracy) + (1 - accuracy) * math.log(1 - accuracy))
    return ConfidenceMetrics(
        words=len(confidences),
        accuracy=accuracy,
        mean_confidence=float(confidences.mean()),
        expected_calibration_error=distance / len(confidences),
        normalized_cross_entropy=(whole - entropy) / whole if whole > 0 else None,
        bins=tuple(bins),
    )


def fit_temperature(confidences: np.ndarray, right: np.ndarray) -> ConfidenceScaling:
    """Fit the temperature with the least cross-entropy on these words. Raises `DataError` if all are right, or all wrong.

    A temperature is positive. Where confidences are higher for wrong words, the best one is so large that all become about 0.5.
    """
    slope = _newton(log_odds(confidences)[:, None], right)[0]
    return ConfidenceScaling(slope=max(float(slope), SMALLEST))


def fit_platt(confidences: np.ndarray, right: np.ndarray) -> ConfidenceScaling:
    """Fit the slope and offset with the least cross-entropy on these words. Raises `DataError` if all are right, or all wrong."""
    odds = log_odds(confidences)
    slope, offset = _newton(np.stack([odds, np.ones_like(odds)], axis=1), right)
    return ConfidenceScaling(float(slope), float(offset))


def _newton(features: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Fit a logistic regression of bool `[n]` on `[n, k]` without an intercept of its own, by damped Newton steps; return `[k]`."""
    if right.all() or not right.any():
        raise DataError(f"all {len(right)} words are {'right' if right.all() else 'wrong'}: a scaling needs both kinds; give more speech")
    weights = np.zeros(features.shape[1])
    loss = _loss(weights, features, right)
    for _ in range(NEWTON_STEPS):
        probability = _sigmoid(features @ weights)
        gradient = features.T @ (probability - right) / len(right) + RIDGE * weights
        curvature = (features * (probability * (1 - probability))[:, None]).T @ features / len(right)
        step = np.linalg.solve(curvature + RIDGE * np.eye(len(weights)), gradient)
        size = 1.0
        while (after := _loss(weights - size * step, features, right)) > loss and size > SMALLEST:
            size /= 2
        weights, gained, loss = weights - size * step, loss - after, after
        if gained < 1e-12:
            break
    return weights


def _loss(weights: np.ndarray, features: np.ndarray, right: np.ndarray) -> float:
    odds = features @ weights
    return float(np.logaddexp(0, np.where(right, -odds, odds)).mean() + RIDGE / 2 * weights @ weights)


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    result: np.ndarray = 0.5 * (1 + np.tanh(odds / 2))
    return result
