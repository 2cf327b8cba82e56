"""Certificates kept in a quantized folder: in its manifest, and in words in its model card."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sottovoce.checkpoint.layout import CARD
from sottovoce.checkpoint.manifest import FileRecord, read_manifest, write_manifest
from sottovoce.errors import OutputError
from sottovoce.evaluation.certificate import Certificate
from sottovoce.evaluation.certificate_words import assumptions, sentences
from sottovoce.models.load import public_name
from sottovoce.system.atomic_files import built_beside, real_place, sha256, swap_in

BEGIN, END = "<!-- certificates -->", "<!-- end of certificates -->"


def store_certificate(folder: Path | str, certificate: Certificate, *, chosen_on: Sequence[str] = ()) -> None:
    """Keep a certificate of a quantized folder, or of an export of it, in the folder; whole or not at all.

    It takes the place of one of the same file on the same speech. `chosen_on`: hashes of the recordings by which the folder was chosen
    from others (see `data.audio.recording_hash`); they are never certified on again. Raises `CheckpointError`, `OutputError`.
    """
    target = real_place(folder)
    manifest = read_manifest(target)
    others = tuple(other for other in manifest.certificates if not _renews(certificate, other))
    kept = (*others, certificate)
    try:
        with built_beside(target) as build:
            content = build / target.name
            # The files are the same ones under a second name, but for those that are written anew.
            shutil.copytree(target, content, copy_function=_link)
            _replace(content / CARD, card_with_certificates((target / CARD).read_text(encoding="utf-8"), kept))
            card = FileRecord(bytes=(content / CARD).stat().st_size, sha256=sha256(content / CARD))
            write_manifest(
                content,
                replace(
                    manifest,
                    certificates=kept,
                    chosen_on=tuple(dict.fromkeys((*manifest.chosen_on, *chosen_on))),
                    files=manifest.files | {CARD: card},
                ),
            )
            swap_in(content, target)
    except (OSError, UnicodeDecodeError) as exc:
        raise OutputError(f"{target}: the certificate cannot be kept there ({exc})") from exc


def card_with_certificates(card: str, certificates: Sequence[Certificate]) -> str:
    """Return a model card with these certificates, in words, in place of those it had; they come before its last paragraph."""
    section = "\n".join([BEGIN, "## Certificates", "", *(f"{certificate_markdown(c)}\n" for c in certificates), END])
    if BEGIN in card and END in card:
        before, _, rest = card.partition(BEGIN)
        return f"{before}{section}{rest.partition(END)[2]}"
    body, _, last = card.rstrip("\n").rpartition("\n\n")
    return f"{body}\n\n{section}\n\n{last}\n"


def certificate_markdown(certificate: Certificate) -> str:
    """Return a certificate as Markdown: what holds, then what is assumed."""
    first, *rest = sentences(certificate)
    context = "" if certificate.context == "full" else f", context {certificate.context}"
    return "\n".join(
        [
            f"### {certificate.runtime}, {certificate.bytes / 1e6:.1f} MB{context}",
            "",
            first,
            "",
            *(f"- {sentence}" for sentence in rest),
            *([""] if rest else []),
            "Assumed:",
            "",
            *(f"- {sentence}" for sentence in assumptions(certificate)),
        ]
    )


def _renews(one: Certificate, other: Certificate) -> bool:
    """Tell whether two certificates are of the same file against the same original on the same speech."""
    if one.reference_digest and other.reference_digest:
        same = one.reference_digest == other.reference_digest
    else:
        same = public_name(one.reference) == public_name(other.reference)
    return same and all(getattr(one, name) == getattr(other, name) for name in ("runtime", "digest", "speech", "context"))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _replace(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
