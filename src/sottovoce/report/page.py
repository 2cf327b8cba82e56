"""The page: figures worked out here, laid out by the template, which escapes every text."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sottovoce import __version__
from sottovoce.bench.figures import draw_figures
from sottovoce.bench.table import Row, Run, summarize
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.errors import MissingDependencyError, OutputError
from sottovoce.evaluation.failures import FAILURES
from sottovoce.evaluation.gate import gate
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts
from sottovoce.quantization.recipe import recipe_from
from sottovoce.report.charts import depth_chart, inline, reliability_chart
from sottovoce.report.words import worst_first
from sottovoce.system.atomic_files import written_whole

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
SCALINGS = {"raw_metrics": "as it is", "temperature_metrics": "temperature", "platt_metrics": "Platt"}
CURVES = {"inherited": "inherited_error", "added": "added_error", "outgoing": "outgoing_error"}


def folder_page(folder: str | Path, transcripts: Sequence[Transcript] | None = None, against: Sequence[Transcript] | None = None) -> str:
    """A quantized folder, with what it heard (`transcripts`) and what the original heard of the same (`against`), if given."""
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    layers = manifest["layers"]
    score = None if transcripts is None else score_transcripts(transcripts, against)
    reference = None if against is None else score_transcripts(against)
    weights = sum(row["weights"] for row in layers)
    return _render(
        "folder.html.j2",
        title=f"{manifest['source']}, {sum(r['weights'] * r['bits_per_weight'] for r in layers) / weights:.2f} bits per weight",
        name=folder.resolve().name,
        manifest=manifest,
        method=recipe_from(manifest["recipe"]).method.title,
        bytes=manifest["files"]["model.safetensors"]["bytes"],
        bits=sum(row["weights"] * row["bits_per_weight"] for row in layers) / weights,
        layers=[_layer(row, layers) for row in layers],
        parts=list(dict.fromkeys(row["part"] for row in layers)),
        measures=[measure[:3] for measure in MEASURES],
        errors=_error_chart(layers),
        strengths=depth_chart(
            {half: {"strength": [row["strength"] for row in rows]} for half, rows in _halves(layers).items()},
            "strength",
        ),
        score=score,
        reference=reference,
        gate=gate(score, reference) if score and reference else None,
        failures=FAILURES,
        utterances=worst_first(transcripts, against)[:WORST] if transcripts is not None else [],
        confidence=manifest.get("confidence"),
        diagram=_reliability(manifest.get("confidence")),
        scalings=SCALINGS,
        recipe=json.dumps(manifest["recipe"], indent=2, ensure_ascii=False),
    )


def bench_page(name: str, results: dict[tuple[str, str, int, str], list[Run]]) -> str:
    """A bench: its table, sortable, and its figures."""
    rows: list[Row] = summarize(results)
    with tempfile.TemporaryDirectory() as scratch:
        figures = [(title, inline(file.read_text())) for title, file in draw_figures(rows, results, Path(scratch))]
    return _render("bench.html.j2", title=f"bench {name}", name=name, rows=[asdict(row) for row in rows], figures=figures)


def write_page(page: str, file: str | Path) -> Path:
    """Write the page, whole or not at all. Raises `OutputError`."""
    target = Path(file).expanduser().absolute()
    try:
        with written_whole(target) as handle:
            handle.write(page)
    except OSError as exc:
        raise OutputError(f"{file}: cannot be written ({exc})") from exc
    return target


def _layer(row: dict[str, Any], layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cells = []
    for key, _, _, worse in MEASURES:
        known = [other[key] for other in layers if other[key] is not None]
        value = row[key]
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        share = (value - low) / (high - low) if value is not None and high > low else 0.0
        # Shade by how far a value is towards the side that deserves a look.
        cells.append({"value": value, "shade": round(100 * (1 - share if worse is False else share)) if known else 0})
    return {"name": row["name"].removeprefix("model."), "part": row["part"], "bits": row["bits"], "cells": cells}


def _halves(layers: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    halves = {
        "encoder": [row for row in layers if row["part"] == "encoder"],
        "decoder": [row for row in layers if row["part"].startswith("decoder")],
    }
    return {half: rows for half, rows in halves.items() if rows}


def _reliability(confidence: dict[str, Any] | None) -> str | None:
    if confidence is None:
        return None
    return reliability_chart({name: confidence[key]["bins"] for key, name in SCALINGS.items()})


def _error_chart(layers: Sequence[dict[str, Any]]) -> str:
    halves = {half: {name: [row[key] for row in rows] for name, key in CURVES.items()} for half, rows in _halves(layers).items()}
    return depth_chart(halves, "share of the output's energy", logarithmic=True)


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
    environment.filters["percent"] = lambda value, digits=2: f"{100 * value:.{digits}f} %"
    environment.filters["points"] = lambda value: f"{100 * value:+.2f}"
    environment.filters["figure"] = lambda value, digits=3: "" if value is None or value != value else f"{value:.{digits}f}"
    return environment.get_template(template).render(version=__version__, **values)
