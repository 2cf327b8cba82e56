"""Measure a grid of models, methods, bits, seeds and data sets cell by cell, each cell once, and show tables and figures."""

from sottovoce.bench.collect import is_bench, read_results
from sottovoce.bench.plan import BenchPlan, plan_from, read_plan
from sottovoce.bench.records import BenchManifest, BenchResults, EvaluationRecord, LayerStrengths
from sottovoce.bench.run import BenchOutcome, run_bench
from sottovoce.bench.summary import BenchSummary, unmeasured, write_summary
from sottovoce.bench.table import Row, as_csv, as_markdown, summarize

__all__ = [
    "BenchManifest",
    "BenchOutcome",
    "BenchPlan",
    "BenchResults",
    "BenchSummary",
    "EvaluationRecord",
    "LayerStrengths",
    "Row",
    "as_csv",
    "as_markdown",
    "is_bench",
    "plan_from",
    "read_plan",
    "read_results",
    "run_bench",
    "summarize",
    "unmeasured",
    "write_summary",
]
