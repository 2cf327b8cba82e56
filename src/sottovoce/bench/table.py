"""Make tables from the records alone: mean and spread over seeds, and where the spread comes from."""

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.bench.cells import TORCH
from sottovoce.bench.records import ORIGINAL, EvaluationRecord
from sottovoce.evaluation.intervals import RESAMPLES
from sottovoce.evaluation.wer import Score, combine_utterances
from sottovoce.quantization.recipe import FLOAT_BITS


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model, method, number of bits and data set over the seeds that were run; rates as shares, not percent.

    `bits` is 16 and `method` "none" for the original; `format`: its name, if the bench asked for it by name. `deviation`: sample standard
    deviation over seeds (0 for one).
    `calibration_share`: share of the WER's variance that comes from the calibration draw; the rest comes from the test
    sample (bootstrap over utterances). `gain`, `reliability`: against RTN on the same grid, `(WER_RTN - WER) / WER_RTN` and
    `(Acc - Acc_RTN) / Acc_RTN` with `Acc = 1 - WER`; None where there is no RTN row or its accuracy is not positive.
    Another runtime than PyTorch has a row of its own, `method` "fade, transcribe.cpp"; its divergences are NaN, since it shows none.
    `capped`: see `Score.capped_wer`. `difference`: WER minus the original's, with its widest paired interval over seeds.
    """

    model: str
    method: str
    bits: int
    data: str
    seeds: int
    words: int
    wer: float
    deviation: float
    low: float
    high: float
    capped: float
    capped_deviation: float
    calibration_share: float | None
    difference: tuple[float, float, float] | None
    mean_kl: float
    kl_deviation: float
    looped: float
    empty: float
    truncated: float
    quality_of_inference: float | None
    gain: float | None
    reliability: float | None
    format: str | None = None

    @property
    def width(self) -> str:
        """The format's name, or the bits of an affine one."""
        return self.format or str(self.bits)


@dataclass(frozen=True, order=True)
class Setting:
    """What a row of the table is about; `method` names the runtime too if it is another than PyTorch: "fade, transcribe.cpp"."""

    model: str
    method: str
    bits: int
    data: str
    format: str = ""


def group_by_setting(records: Iterable[EvaluationRecord]) -> dict[Setting, list[EvaluationRecord]]:
    """Group evaluations by all but their seeds, in the order of these."""
    found = defaultdict[Setting, list[EvaluationRecord]](list)
    for record in sorted(records, key=lambda record: record.seed or 0):
        method = record.method if record.runtime == TORCH else f"{record.method}, {record.runtime}"
        found[Setting(record.model, method, record.bits, record.data, record.format or "")].append(record)
    return dict(found)


def summarize(records: Iterable[EvaluationRecord]) -> list[Row]:
    """Make one row per model, data set, bits and method; models and data sets by name, bits falling, methods as they do better."""
    groups = group_by_setting(records)
    scores: dict[Setting, list[Score]] = {}
    for setting, runs in groups.items():
        original = groups.get(Setting(setting.model, ORIGINAL, FLOAT_BITS, setting.data))
        against = original[0].utterances.scores() if original and setting.method != ORIGINAL else None
        scores[setting] = [combine_utterances(run.utterances.scores(), against) for run in runs]
    grids = {setting: {run.grid for run in runs} for setting, runs in groups.items()}
    rows = [_row(setting, scores, grids, runs) for setting, runs in groups.items()]
    return sorted(
        rows, key=lambda row: (row.model, row.data, -row.bits, row.format or "", -row.mean_kl if row.mean_kl >= 0 else math.inf, row.method)
    )


def _row(
    setting: Setting, scores: Mapping[Setting, list[Score]], grids: Mapping[Setting, set[str | None]], runs: Sequence[EvaluationRecord]
) -> Row:
    own = scores[setting]
    rates, divergences = [score.wer for score in own], [_mean_divergence(run) for run in runs]
    wer = statistics.fmean(rates)
    capped = [score.capped_wer for score in own]
    name, _, runtime = setting.method.partition(", ")
    rounded_method = f"rtn, {runtime}" if runtime else "rtn"
    rounding = replace(setting, method=rounded_method)
    ours, theirs = (grids.get(own, set()) - {None} for own in (setting, rounding))
    other_grid = bool(ours and theirs) and ours != theirs  # of methods with settings of their own
    rounded = scores.get(rounding) if name not in ("rtn", ORIGINAL) and not other_grid else None
    rounded_wer = rounded[0].wer if rounded else None
    paired = [score.paired for score in own if score.paired is not None]
    qualities = [quality for score in own if (quality := score.quality_of_inference) is not None]
    return Row(
        model=setting.model,
        method=setting.method,
        bits=setting.bits,
        format=setting.format or None,
        data=setting.data,
        seeds=len(own),
        words=own[0].words,
        wer=wer,
        deviation=_deviation(rates),
        low=min(score.low for score in own),
        high=max(score.high for score in own),
        capped=statistics.fmean(capped),
        capped_deviation=_deviation(capped),
        calibration_share=_calibration_share(own) if len(own) > 1 else None,
        difference=(
            statistics.fmean(p.difference for p in paired),
            min(p.low for p in paired),
            max(p.high for p in paired),
        )
        if paired
        else None,
        mean_kl=statistics.fmean(divergences),
        kl_deviation=_deviation(divergences),
        looped=statistics.fmean(len(score.looped) for score in own),
        empty=statistics.fmean(len(score.empty) for score in own),
        truncated=statistics.fmean(len(score.truncated) for score in own),
        quality_of_inference=statistics.fmean(qualities) if qualities else None,
        gain=(rounded_wer - wer) / rounded_wer if rounded_wer else None,
        reliability=(rounded_wer - wer) / (1 - rounded_wer) if rounded_wer is not None and rounded_wer < 1 else None,
    )


def _mean_divergence(record: EvaluationRecord) -> float:
    if record.method == ORIGINAL:
        return 0.0
    return math.nan if record.divergence is None else record.divergence.mean


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _calibration_share(scores: Sequence[Score], seed: int = 0) -> float | None:
    """Compute the variance over seeds, as a share of itself plus the bootstrap variance of the mean system's WER over utterances."""
    errors = np.array([[utterance.errors for utterance in score.utterances] for score in scores], dtype=float).mean(0)
    words = np.array([utterance.words for utterance in scores[0].utterances])
    draws = np.random.default_rng(seed).integers(0, len(words), size=(RESAMPLES, len(words)))
    sample = float(np.var(errors[draws].sum(1) / np.maximum(words[draws].sum(1), 1), ddof=1))
    calibration = statistics.variance(score.wer for score in scores)
    return calibration / (calibration + sample) if calibration + sample > 0 else None


def as_markdown(rows: Sequence[Row]) -> str:
    """Write a Markdown table per model and data set."""
    lines = list[str]()
    for model, data in dict.fromkeys((row.model, row.data) for row in rows):
        own = [row for row in rows if (row.model, row.data) == (model, data)]
        lines += [
            f"**{model}** on **{data}** ({own[0].words} words)",
            "",
            "| bits | method | seeds | WER % | min .. max of 95 % intervals | against the original | capped WER % | mean KL | loops "
            "| not worse % | gain | reliability | variance from calibration |",
            "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in own:
            change = "" if row.difference is None else "{:+.1f} ({:+.1f} .. {:+.1f})".format(*(100 * d for d in row.difference))
            cells = [
                row.width if row.method != ORIGINAL else str(FLOAT_BITS),
                row.method if row.method != ORIGINAL else "full precision",
                str(row.seeds),
                _with_deviation(100 * row.wer, 100 * row.deviation, row.seeds, 1),
                f"{100 * row.low:.1f} .. {100 * row.high:.1f}",
                change,
                _with_deviation(100 * row.capped, 100 * row.capped_deviation, row.seeds, 1),
                "" if math.isnan(row.mean_kl) else _with_deviation(row.mean_kl, row.kl_deviation, row.seeds, 3),
                f"{row.looped:.1f}",
                "" if row.quality_of_inference is None else f"{100 * row.quality_of_inference:.0f}",
                "" if row.gain is None else f"{row.gain:.2f}",
                "" if row.reliability is None else f"{row.reliability:.2f}",
                "" if row.calibration_share is None else f"{100 * row.calibration_share:.0f} %",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _with_deviation(mean: float, deviation: float, seeds: int, digits: int) -> str:
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if seeds > 1 else "")


def as_csv(rows: Sequence[Row]) -> str:
    """Write all figures, one line per row."""
    by_name = any(row.format for row in rows)
    names = [name for name in Row.__dataclass_fields__ if name != "difference" and (by_name or name != "format")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "difference", "difference_low", "difference_high"])
    for row in rows:
        change = row.difference or ("", "", "")
        writer.writerow([*("" if getattr(row, name) is None else getattr(row, name) for name in names), *change])
    return text.getvalue()
