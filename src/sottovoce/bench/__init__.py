"""A grid of models, methods, widths, seeds and data sets: measured cell by cell, each cell once, and shown as tables and figures."""

from sottovoce.bench.figures import draw_figures
from sottovoce.bench.plan import BenchPlan, read_plan
from sottovoce.bench.run import BenchOutcome, run_bench
from sottovoce.bench.table import Row, Run, as_csv, as_markdown, read_results, summarize

__all__ = [
    "BenchOutcome",
    "BenchPlan",
    "Row",
    "Run",
    "as_csv",
    "as_markdown",
    "draw_figures",
    "read_plan",
    "read_results",
    "run_bench",
    "summarize",
]
