"""The page: figures worked out here, laid out by the template, which escapes every text."""

import codecs
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sottovoce import __version__
from sottovoce.bench.collect import is_bench, read_results
from sottovoce.bench.figures import draw_figures
from sottovoce.bench.records import BenchResults
from sottovoce.bench.table import summarize
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.core.formats import short_title
from sottovoce.errors import DataError, MissingDependencyError, OutputError, first_of
from sottovoce.evaluation.certificate_words import assumptions, sentences, statement_row
from sottovoce.evaluation.confidence import FittedConfidence
from sottovoce.evaluation.error_statistics import ROUNDING, ErrorTable
from sottovoce.evaluation.failures import FAILURES
from sottovoce.evaluation.gate import gate
from sottovoce.evaluation.transcripts import Transcript, read_transcripts
from sottovoce.evaluation.wer import score_pair
from sottovoce.quantization.layer import LayerReport
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.tune_record import TuneRecord
from sottovoce.report.charts import depth_chart, heat_map, inline, look_chart, reliability_chart
from sottovoce.report.words import worst_first
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.counting import counted
from sottovoce.system.outputs import FileKind, check_outputs
from sottovoce.system.plain_data import from_plain, to_plain
from sottovoce.tuning.words import sentences as tuning_sentences

WORST = 40  # utterances shown
# What the table of layers shows: key, heading, explanation, whether more is worse (None: neither).
MEASURES: tuple[tuple[str, str, str, bool | None], ...] = (
    ("strength", "strength", "of the correction for inherited error", None),
    ("vulnerability", "vulnerability", "relative weight error of plain rounding", True),
    ("reliability", "reliability", "calibration reliability score: accuracy won over plain rounding", False),
    ("calibration_gain", "gain", "share of plain rounding's error that calibration removes", False),
    ("inherited_error", "inherited", "error of the output that earlier layers cause", True),
    ("added_error", "added", "error that this layer's own rounding adds", True),
    ("outgoing_error", "outgoing", "error that leaves the layer", True),
)
SCALINGS = {"raw_metrics": "raw", "temperature_metrics": "temperature", "platt_metrics": "Platt"}
CURVES = {"inherited": "inherited_error", "added": "added_error", "outgoing": "outgoing_error"}


def write_report(
    folder: str | Path,
    *,
    transcripts: str | Path | None = None,
    against: str | Path | None = None,
    errors: str | Path | None = None,
    language: str | None = None,
    html: str | Path | None = None,
) -> Path:
    """Write one HTML page about a quantized folder, or about the results of a bench, and return where it lies.

    `transcripts`: file of the model's transcripts; `against`: of the original's, of the same speech. `errors`: file of how the errors of
    its layers add up (`inspect --errors --json`). `language`: of transcripts that name none. All these are of a quantized folder,
    not of a bench. `html`: the page (default: beside the folder, with its name). Raises `CheckpointError`, `DataError` or `OutputError`.
    """
    folder = Path(folder).expanduser().resolve()
    target, bench = html or folder.with_name(f"{folder.name}.html"), is_bench(folder)
    of_one_model = {"transcripts": transcripts, "against": against, "errors": errors, "language": language}
    if bench and (given := [name for name, value in of_one_model.items() if value is not None]):
        raise DataError(
            f"{folder}: holds the results of a bench, and only the page of a quantized folder shows {', '.join(given)}; leave that out, or "
            "give the quantized folder that it is of"
        )
    read = [Path(file).expanduser() for file in (transcripts, against, errors) if file is not None]
    check_outputs([(target, PAGE)], reserved=read, folders=[] if bench else [folder])
    if bench:
        page = bench_page(folder.name, read_results(folder))
    else:
        page = folder_page(
            folder,
            None if transcripts is None else read_transcripts(transcripts),
            None if against is None else read_transcripts(against),
            None if errors is None else read_error_table(errors),
            language=language,
        )
    return write_page(page, target)


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html"))


PAGE = FileKind(title="an HTML page", holds=_is_page)


def read_error_table(file: str | Path) -> ErrorTable:
    """Read what `inspect --errors --json` wrote. Raises `DataError`."""
    try:
        return from_plain(ErrorTable, json.loads(Path(file).expanduser().read_text(encoding="utf-8")))
    except (OSError, ValueError, DataError) as exc:
        raise DataError(f"{file}: does not hold how errors add up ({exc}); write it with `inspect FOLDER --errors DATA --json`") from exc


def folder_page(
    folder: str | Path,
    transcripts: Sequence[Transcript] | None = None,
    against: Sequence[Transcript] | None = None,
    together: ErrorTable | None = None,
    *,
    language: str | None = None,
) -> str:
    """Return the page of a quantized folder, with the model's transcripts and the original's of the same speech, if given, and with how
    the errors of its layers add up, if that is. `language`: of transcripts that name none."""
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    reports, halves = manifest.layers, _halves(manifest.layers)
    if together is not None:
        _check_units(together, manifest.plan, folder)
    score, reference = (None, None) if transcripts is None else score_pair(transcripts, against, language=language)
    fitted = manifest.confidence.fitted if manifest.confidence else None
    return _render(
        "folder.html.j2",
        title=f"{manifest.source}, {manifest.plan.bits_per_weight:.2f} bits per weight",
        name=folder.resolve().name,
        manifest=manifest,
        method=manifest.recipe.method.title,
        bytes=manifest.files[WEIGHTS].bytes,
        bits=manifest.plan.bits_per_weight,
        layers=[_layer(report, reports, manifest.plan) for report in reports],
        parts=list(dict.fromkeys(report.part for report in reports)),
        measures=[measure[:3] for measure in MEASURES],
        errors=_error_chart(halves),
        strengths=_strength_chart(halves),
        together=together,
        heat_map=None if together is None else _heat_map(together, manifest.plan),
        tuning=None if manifest.tune is None else tuning_sentences(manifest.tune),
        looks=None if manifest.tune is None else _look_chart(manifest.tune),
        score=score,
        reference=reference,
        gate=gate(score, reference) if score and reference else None,
        failures=FAILURES,
        utterances=worst_first(transcripts, against, language)[:WORST] if transcripts is not None else [],
        confidence=to_plain(fitted) | {"data": manifest.confidence.data} if fitted and manifest.confidence else None,
        diagram=_reliability(fitted),
        scalings=SCALINGS,
        certificates=[
            {
                "of": certificate,
                "sentences": sentences(certificate),
                "rows": [statement_row(statement) for statement in certificate.statements],
                "assumptions": assumptions(certificate),
            }
            for certificate in manifest.certificates
        ],
        recipe=json.dumps(to_plain(manifest.recipe), indent=2, ensure_ascii=False),
    )


def bench_page(name: str, results: BenchResults) -> str:
    """Write the page of a bench called `name`: its table, sortable, and its figures."""
    rows = summarize(results.evaluations)
    with tempfile.TemporaryDirectory() as scratch:
        figures = [(title, inline(file.read_text())) for title, file in draw_figures(rows, results.layers, Path(scratch))]
    return _render("bench.html.j2", title=f"bench {name}", name=name, rows=rows, figures=figures)


def write_page(page: str, file: str | Path) -> Path:
    """Write the page, whole or not at all. Raises `OutputError`."""
    target = Path(file).expanduser().absolute()
    try:
        with written_whole(target) as handle:
            handle.write(page)
    except OSError as exc:
        raise OutputError(f"{file}: cannot be written ({exc})") from exc
    return target


def _layer(report: LayerReport, reports: Sequence[LayerReport], plan: Plan) -> dict[str, Any]:
    cells = []
    for key, _, _, worse in MEASURES:
        known = [value for other in reports if (value := getattr(other, key)) is not None]
        value = getattr(report, key)
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        share = (value - low) / (high - low) if value is not None and high > low else 0.0
        # Shade by how far a value is towards the side that deserves a look.
        cells.append({"value": value, "shade": round(100 * (1 - share if worse is False else share)) if known else 0})
    name = report.name.removeprefix("model.")
    return {"name": name, "part": report.part, "bits": report.bits, "format": short_title(plan.format(report.name)), "cells": cells}


def _halves(reports: Sequence[LayerReport]) -> dict[str, list[LayerReport]]:
    halves = {
        "encoder": [report for report in reports if report.part == "encoder"],
        "decoder": [report for report in reports if report.part.startswith("decoder")],
    }
    return {half: own for half, own in halves.items() if own}


def _reliability(fitted: FittedConfidence | None) -> str | None:
    if fitted is None:
        return None
    return reliability_chart({name: getattr(fitted, key).bins for key, name in SCALINGS.items()})


def _look_chart(record: TuneRecord) -> str:
    """The looks of a tuning on both folds; at short contexts in a panel of its own."""
    panels = {"full context": {"held out": [look.kl for look in record.looks], "seen": [look.seen_kl for look in record.looks]}}
    if record.start.short_kl is not None:
        panels["short contexts"] = {
            "held out": [look.short_kl or 0.0 for look in record.looks],
            "seen": [look.seen_short_kl or 0.0 for look in record.looks],
        }
    return look_chart([look.step for look in record.looks], panels, record.chosen)


def _check_units(found: ErrorTable, plan: Plan, folder: Path) -> None:
    """Raise `DataError` if these are the errors of other layers than the plan's."""
    if others := sorted({layer.name for layer in plan.layers} ^ (set(found.units) - {ROUNDING})):
        raise DataError(
            f"the errors are of another model than {folder.name}: only one of the two has the layer {first_of(others)}; write them with "
            f"`inspect {folder} --errors DATA --json`"
        )


def _heat_map(found: ErrorTable, plan: Plan) -> str:
    """The matrix in units of the KL, its rows framed by the parts of the model."""
    parts = {layer.name: layer.part for layer in plan.layers}
    return heat_map([[value / 2 for value in row] for row in found.matrix], [parts.get(unit, unit) for unit in found.units])


def _error_chart(halves: Mapping[str, Sequence[LayerReport]]) -> str | None:
    """The errors along the depth; None where the head alone is quantized."""
    curves = {half: {name: [getattr(report, key) for report in own] for name, key in CURVES.items()} for half, own in halves.items()}
    return depth_chart(curves, "share of the output's energy", logarithmic=True) if curves else None


def _strength_chart(halves: Mapping[str, Sequence[LayerReport]]) -> str | None:
    """The strengths along the depth; None where the head alone is quantized."""
    curves = {half: {"strength": [report.strength for report in own]} for half, own in halves.items()}
    return depth_chart(curves, "strength") if curves else None


def _render(template: str, **values: Any) -> str:
    try:
        import jinja2
    except ImportError as exc:
        raise MissingDependencyError('reports need jinja2: pip install "sottovoce[report]"') from exc
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sottovoce.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["counted"] = counted
    environment.filters["percent"] = lambda value, digits=2: "-" if value != value else f"{100 * value:.{digits}f} %"
    environment.filters["points"] = lambda value: f"{100 * value:+.2f}"
    environment.filters["figure"] = lambda value, digits=3: "" if value is None or value != value else f"{value:.{digits}f}"
    return environment.get_template(template).render(version=__version__, **values)
