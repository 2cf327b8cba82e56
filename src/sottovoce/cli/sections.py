"""Help in sections: a command with many options shows each under the question that it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

SPEECH, FORMAT, METHOD = "Model and speech", "Format", "Method"
GOAL, DECODING = "Goals and limits", "Decoding"
DEVICE, OUTPUT = "Device and memory", "Output"
OTHER = "Other"  # --help, and what has no section

_SECTIONS: dict[str, tuple[str, ...]] = {  # in the order in which they are shown; options by the name of their parameter
    SPEECH: (
        "audio", "calibration", "calibration_weights", "augment", "utterances", "held_out", "seed", "against", "limit", "language",
    ),
    GOAL: (
        "max_size", "max_kl", "max_wer_increase", "max_changed", "max_disagreement", "max_looped", "max_empty", "max_worse", "choose",
        "confidence", "gate", "tolerance",
    ),
    FORMAT: (
        "target", "format_name", "bits", "group_size", "symmetric", "observer", "head_bits", "encoder_bits", "head_format",
        "encoder_format", "rules", "plan_file",
    ),
    METHOD: (
        "method", "strength", "ridge", "damping", "act_order", "absorb_bias", "compensate_residual", "curvature", "padding_weight",
        "frame_subsampling", "joined", "tune", "swaps", "guarded", "baselines", "steps", "rate", "float_rate", "look_every",
    ),
    DECODING: ("runtime", "fallback", "tokens_per_second", "context"),
    DEVICE: ("device", "dtype", "offload", "threads", "batch_size", "max_memory", "ray"),
    OUTPUT: (
        "dry_run", "overwrite", "resume", "save", "save_reference", "folder", "store", "out", "ledger", "verify", "as_json",
    ),
}  # fmt: skip
_SECTION_OF = {name: title for title, names in _SECTIONS.items() for name in names}


class SectionedCommand(click.Command):
    """A command whose help shows its options in sections. `sections`: of parameters that stand elsewhere in this command."""

    def __init__(self, *arguments: Any, sections: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._sections = _SECTION_OF | dict(sections or {})

    def section_of(self, option: click.Parameter) -> str:
        """Return the title of the section that an option stands in."""
        return self._sections.get(option.name or "", OTHER)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[str, list[tuple[str, str]]] = {title: [] for title in (*_SECTIONS, OTHER)}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx)) is not None:
                records[self.section_of(option)].append(record)
        for title, own in records.items():
            if own:
                with formatter.section(title):
                    formatter.write_dl(own)
