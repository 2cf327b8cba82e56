"""Tables about how errors add up."""

from collections.abc import Mapping

import numpy as np
from rich.table import Table

from sottovoce.cli.console import console
from sottovoce.evaluation.error_statistics import ErrorStatistics

PAIRS = 5  # most correlated and most opposed ones that are shown


def print_errors(found: ErrorStatistics, parts: Mapping[str, str], title: str) -> None:
    """Print the sums, the parts of the model against each other, and the pairs that add or cancel most."""
    terminal = console()
    names, grouped = found.grouped(parts)
    table = Table("part", *names, title=f"{title}: KL by pairs of parts, nats per token x 1000")
    for name, row in zip(names, grouped, strict=True):
        table.add_row(name, *(f"{1000 * value:.3f}" for value in row))
    terminal.print(table)
    upper = [(i, j) for i in range(len(found.units)) for j in range(i)]
    upper.sort(key=lambda pair: found.matrix[pair])
    pairs = Table("pair", "with", "adds to the KL x 1000", "correlation", title="What cancels and what adds most")
    for i, j in dict.fromkeys([*upper[:PAIRS], *upper[-PAIRS:]]):
        both = (found.units[name].removeprefix("model.") for name in (j, i))
        pairs.add_row(*both, f"{1000 * found.matrix[i, j]:.4f}", f"{found.correlation[i, j]:+.2f}")
    terminal.print(pairs)
    smallest = float(np.linalg.eigvalsh(found.matrix).min())
    terminal.print(
        f"half the sum {found.predicted_kl:.5f}, measured KL {found.measured_kl:.5f}, half the trace {found.alone_kl:.5f}, "
        f"off-diagonal share {found.off_diagonal_share:+.1%}; tokens shuffled: {found.shuffled_kl:.5f}; {found.tokens} tokens; "
        f"smallest eigenvalue {smallest:.1e}",
        highlight=False,
    )
