"""Certificates on the terminal."""

from rich.table import Table

from sottovoce.api.certification import Choice
from sottovoce.cli.console import NONE, console, megabytes
from sottovoce.evaluation.certificate import Certificate
from sottovoce.evaluation.certificate_words import PHRASES, assumptions, limits_of, rate_text, sentences, statement_row


def print_certificate(certificate: Certificate) -> None:
    """Print what holds, the table behind it, and what is assumed."""
    terminal = console()
    for sentence in sentences(certificate):
        terminal.print(sentence, highlight=False)
    table = Table("", "over", "on this speech", f"at most, with {100 * certificate.confidence:.10g} %", "Hoeffding-Bentkus")
    for statement in certificate.statements:
        table.add_row(*statement_row(statement))
    terminal.print(table)
    corpora = Table("speech", "utterances", "speakers", "minutes", "changed", "words that differ")
    for corpus in certificate.corpora:
        corpora.add_row(
            corpus.name,
            str(corpus.utterances),
            f"{corpus.speakers or NONE}",
            f"{corpus.seconds / 60:.1f}",
            rate_text("changed", corpus.changed),
            rate_text("disagreement", corpus.disagreement),
        )
    terminal.print(corpora)
    terminal.print("Assumed:")
    for sentence in assumptions(certificate):
        terminal.print(f"- {sentence}", highlight=False)


def print_choice(choice: Choice) -> None:
    """Print the candidates, largest first, and the certificate of the one that was chosen."""
    tested = choice.candidates[0].certificate
    limits = limits_of(tested) if tested else []
    table = Table("checkpoint", "size", *(f"{PHRASES[name]} (limit {rate_text(name, limit)})" for name, limit in limits), "")
    for candidate in choice.candidates:
        certificate = candidate.certificate
        bounds = [NONE] * len(limits)
        if certificate is not None:
            bounds = [rate_text(name, s.bound) for name, _ in limits if (s := certificate.statement(name))]
        verdict = "not tried" if certificate is None else "exceeds" if candidate.exceeded else "passes"
        table.add_row(candidate.checkpoint, megabytes(candidate.bytes), *bounds, verdict)
    console().print(table)
    if choice.chosen is not None and choice.chosen.certificate is not None:
        print_certificate(choice.chosen.certificate)
