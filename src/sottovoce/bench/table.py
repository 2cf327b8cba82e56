"""Tables from the results alone: mean and spread over seeds, and where the spread comes from."""

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.bench.cells import as_transcript, read_cell
from sottovoce.errors import DataError
from sottovoce.evaluation.intervals import RESAMPLES
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import Score, score_transcripts


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model, method, width and data set over the seeds that were run; rates as shares, not percent.

    `bits` is 16 and `method` "none" for the original. `deviation`: sample standard deviation over seeds (0 for one).
    `calibration_share`: share of the WER's variance that comes from the calibration draw; the rest comes from the test
    sample (bootstrap over utterances). `gain`, `reliability`: against RTN on the same grid, `(WER_RTN - WER) / WER_RTN` and
    `(Acc - Acc_RTN) / Acc_RTN` with `Acc = 1 - WER`; None where there is no RTN row or its accuracy is not positive.
    What another runtime than PyTorch heard is a row of its own, `method` "fade, gguf"; its divergences are NaN, since it shows none.
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


@dataclass(frozen=True)
class Run:
    """One evaluated cell: what was heard, the divergence from the original, and the reports of its layers."""

    transcripts: tuple[Transcript, ...]
    mean_kl: float
    layers: tuple[dict[str, Any], ...] = ()


def read_results(out: str | Path) -> dict[tuple[str, str, int, str], list[Run]]:
    """All finished evaluations in a bench's folder, by model, method, bits and data set, in the order of their seeds.

    Where the same was measured more than once (with other versions or settings), the newest counts.
    """
    folder = Path(out).expanduser() / "cells"
    cells = {file.stem: read_cell(file) for file in sorted(folder.glob("*.json"))}
    if not cells:
        raise DataError(f"{out}: holds no results of a bench (no {folder}/*.json)")
    # by the time inside: a checkout gives its files any times
    cells = dict(sorted(cells.items(), key=lambda item: item[1].get("timing", {}).get("finished", 0.0)))
    found: dict[tuple[str, str, int, str], dict[int, Run]] = defaultdict(dict)
    for cell in cells.values():
        key, result = cell["key"], cell.get("result")
        if result is None or cell["kind"] == "quantize":
            continue
        transcripts = tuple(map(as_transcript, result["transcripts"]))
        if cell["kind"] == "reference":
            found[key["model"], "none", 16, key["data"]][0] = Run(transcripts, 0.0)
            continue
        parent = cells.get(key["quantized"])
        if parent is None or "result" not in parent:
            continue
        made = parent["key"]
        method = made["method"] + (f", {key['runtime']}" if "runtime" in key else "")
        at = (made["model"], method, made["recipe"]["format"]["bits"], key["data"])
        kl = result.get("mean_kl", math.nan)
        found[at][made["seed"] or 0] = Run(transcripts, kl, tuple(parent["result"]["layers"]))
    return {at: [runs[seed] for seed in sorted(runs)] for at, runs in found.items()}


def summarize(results: dict[tuple[str, str, int, str], list[Run]]) -> list[Row]:
    """One row per model, data set, width and method; models and data sets by name, widths falling, methods as they do better."""
    scores: dict[tuple[str, str, int, str], list[Score]] = {}
    for at, runs in results.items():
        original = results.get((at[0], "none", 16, at[3]))
        against = original[0].transcripts if original and at[1] != "none" else None
        scores[at] = [score_transcripts(run.transcripts, against) for run in runs]
    rows = [_row(at, scores, results[at]) for at in scores]
    return sorted(rows, key=lambda row: (row.model, row.data, -row.bits, -row.mean_kl if row.mean_kl >= 0 else math.inf))


def _row(at: tuple[str, str, int, str], scores: dict[Any, list[Score]], runs: Sequence[Run]) -> Row:
    model, method, bits, data = at
    own = scores[at]
    rates, divergences = [score.wer for score in own], [run.mean_kl for run in runs]
    wer = statistics.fmean(rates)
    capped = [score.capped_wer for score in own]
    name, _, runtime = method.partition(", ")
    rounded_method = f"rtn, {runtime}" if runtime else "rtn"
    rounded = scores.get((model, rounded_method, bits, data)) if name not in ("rtn", "none") else None
    rounded_wer = rounded[0].wer if rounded else None
    paired = [score.paired for score in own if score.paired is not None]
    qualities = [quality for score in own if (quality := score.quality_of_inference) is not None]
    return Row(
        model=model,
        method=method,
        bits=bits,
        data=data,
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


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _calibration_share(scores: Sequence[Score], seed: int = 0) -> float | None:
    """Variance over seeds, as a share of itself plus the bootstrap variance of the mean system's WER over utterances."""
    errors = np.array([[utterance.errors for utterance in score.utterances] for score in scores], dtype=float).mean(0)
    words = np.array([utterance.words for utterance in scores[0].utterances])
    draws = np.random.default_rng(seed).integers(0, len(words), size=(RESAMPLES, len(words)))
    sample = float(np.var(errors[draws].sum(1) / np.maximum(words[draws].sum(1), 1), ddof=1))
    calibration = statistics.variance(score.wer for score in scores)
    return calibration / (calibration + sample) if calibration + sample > 0 else None


def as_markdown(rows: Sequence[Row]) -> str:
    """A table per model and data set."""
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
                str(row.bits) if row.method != "none" else "16",
                row.method if row.method != "none" else "full precision",
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
    """All figures, one line per row."""
    names = [name for name in Row.__dataclass_fields__ if name != "difference"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "difference", "difference_low", "difference_high"])
    for row in rows:
        change = row.difference or ("", "", "")
        writer.writerow([*("" if getattr(row, name) is None else getattr(row, name) for name in names), *change])
    return text.getvalue()
