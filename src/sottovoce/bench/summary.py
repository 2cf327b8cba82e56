"""Write everything that follows from a bench's results: the compact records, the tables and the figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from sottovoce.bench.collect import read_results
from sottovoce.bench.figures import draw_figures
from sottovoce.bench.plan import BenchPlan
from sottovoce.bench.records import BenchResults, EvaluationRecord, write_records
from sottovoce.bench.table import Row, as_csv, as_markdown, summarize
from sottovoce.errors import DataError, MissingDependencyError, OutputError
from sottovoce.system.atomic_files import written_whole

TABLES = ("results.md", "results.csv")


@dataclass(frozen=True, kw_only=True)
class BenchSummary:
    """The results and rows of a bench, its table in Markdown, the figures that were drawn, and why some were not."""

    results: BenchResults
    rows: tuple[Row, ...]
    markdown: str
    figures: tuple[Path, ...]
    notes: tuple[str, ...]


def unmeasured(plan: BenchPlan, evaluations: Sequence[EvaluationRecord]) -> int:
    """Count the evaluations that a plan asks for, by their names, and that are not among `evaluations`."""
    have = {(e.model, e.method, e.bits, e.format, e.seed, e.data, e.runtime) for e in evaluations}
    asked = product(plan.quantizations(), plan.data, plan.runtimes)
    return sum((q.model, q.method, q.bits, q.format, q.seed, data, runtime) not in have for q, data, runtime in asked)


def write_summary(out: str | Path) -> BenchSummary:
    """Write compact records, `results.csv`, `results.md` and SVG figures into `out`, from its cells or, where they are gone, its records.

    Without matplotlib there are no figures, and a note says so. Raises `DataError` if `out` holds no results, `OutputError` if it
    cannot be written.
    """
    folder = Path(out).expanduser()
    results = read_results(folder)
    silent = [f"{data}: no utterance has a text with words, so it has no word error rate and no row" for data in results.without_texts]
    if silent and not results.evaluations:
        raise DataError(f"{silent[0]}; give data with texts")
    rows = summarize(results.evaluations)
    markdown, figures, notes = as_markdown(rows), list[Path](), silent
    try:
        write_records(folder, results)
        for name, text in zip(TABLES, (markdown, as_csv(rows)), strict=True):
            with written_whole(folder / name) as file:
                file.write(text)
        figures += [file for _, file in draw_figures(rows, results.layers, folder)]
    except MissingDependencyError as exc:
        notes.append(str(exc))
    except OSError as exc:
        raise OutputError(f"{out}: results cannot be written ({exc})") from exc
    return BenchSummary(results=results, rows=tuple(rows), markdown=markdown, figures=tuple(figures), notes=tuple(notes))
