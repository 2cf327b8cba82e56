"""The options of `quantize` that make up a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from sottovoce.backends.registry import DEFAULT_TARGET
from sottovoce.cli.options import ANY_BACKEND, first_given

if TYPE_CHECKING:
    from sottovoce.quantization.recipe import Recipe, Rule

# Written out here, so that `--help` need not import what knows them; a test compares.
METHOD_NAMES = ("fade", "fade-diagnostic", "qep", "gptq", "awq", "rtn", "rtn-imatrix")
WIDTHS = ("2", "3", "4", "5", "6", "8")
FLOAT = "16"  # the width that leaves a layer in floating point
HELD_OUT_OR_NUMBER = "NUMBER|held-out"
AFFINE_OPTIONS = ("bits", "group_size", "symmetric", "observer")  # the settings of an affine format
FORMAT_OPTIONS = ("format_name", *AFFINE_OPTIONS, "head_bits", "encoder_bits", "head_format", "encoder_format", "rules")  # in a plan


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The options as they were given."""

    method: str
    target: str | None
    format_name: str | None
    bits: str
    group_size: str
    symmetric: bool | None
    observer: Any
    head_bits: str | None
    encoder_bits: str | None
    head_format: str | None
    encoder_format: str | None
    rules: tuple[tuple[str, str], ...]
    strength: str | None
    ridge: str | None
    damping: str | None
    act_order: bool | None
    absorb_bias: bool | None
    compensate_residual: bool | None
    curvature: float | None
    padding_weight: float
    frame_subsampling: int
    joined: float


_OPTIONS = (
    click.option(
        "--format",
        "format_name",
        metavar="NAME",
        help="Number format of the weights, by name (see sottovoce formats; default: as --bits).",
    ),
    click.option("--bits", type=click.Choice(WIDTHS), default="4", show_default=True, help="Bits per weight of an affine format."),
    click.option("--method", type=click.Choice(METHOD_NAMES), default="fade", show_default=True, help="Quantization method."),
    click.option(
        "--target",
        type=ANY_BACKEND,
        help=f"Runtime that the result is for: weights get formats that it stores (default: {DEFAULT_TARGET}; torch: any format).",
    ),
    click.option(
        "--group-size",
        type=click.Choice(["32", "64", "128", "row"]),
        default="32",
        show_default=True,
        help="Weights that share a scale.",
    ),
    click.option(
        "--symmetric/--asymmetric",
        default=None,
        help="Without or with zero points (default: the faster one in the target's runtime).",
    ),
    click.option(
        "--observer",
        type=click.Choice(["mse", "minmax"]),
        default="mse",
        show_default=True,
        help="How scales are found: least rounding error, or the range.",
    ),
    click.option(
        "--head-bits",
        type=click.Choice([*WIDTHS, FLOAT]),
        help="Bits of the output head and token embedding (default: as --bits; 16: not quantized).",
    ),
    click.option(
        "--encoder-bits",
        type=click.Choice([*WIDTHS, FLOAT]),
        help="Bits of the encoder (default: as --bits; 8 is the fastest in ONNX Runtime; 16: not quantized).",
    ),
    click.option("--head-format", metavar="NAME", help="Number format of the output head and token embedding (default: as --format)."),
    click.option("--encoder-format", metavar="NAME", help="Number format of the encoder (default: as --format)."),
    click.option(
        "--rule",
        "rules",
        nargs=2,
        multiple=True,
        metavar="REGEX BITS|FORMAT",
        help="Bits or format of the layers whose name matches (16: not quantized). Repeatable.",
    ),
    click.option("--strength", help="Strength of error correction: a number, cross-fit or diagnostic.", metavar="NUMBER|RULE"),
    click.option("--ridge", help="Ridge of the correction, in mean diagonals of the Hessian.", metavar=HELD_OUT_OR_NUMBER),
    click.option("--damping", help="Damping of the Hessian, in its mean diagonals.", metavar=HELD_OUT_OR_NUMBER),
    click.option("--act-order/--no-act-order", default=None, help="Round columns by decreasing activation, or in their own order."),
    click.option("--absorb-bias/--keep-bias", default=None, help="Put the mean output error into the bias."),
    click.option(
        "--compensate-residual/--no-compensate-residual",
        default=None,
        help="Correct for the error of the residual stream, or for a layer's own inputs alone.",
    ),
    click.option(
        "--curvature",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="Share of a position's weight that follows how much the end loss minds an error there, 0 to 1 (default: 0).",
    ),
    click.option(
        "--padding-weight",
        type=click.FloatRange(0, 1),
        default=0.0,
        show_default=True,
        help="Weight of frames beyond the end of the audio, 0 to 1.",
    ),
    click.option(
        "--frame-subsampling",
        type=click.IntRange(1),
        default=3,
        show_default=True,
        help="Count every n-th audio frame; 1 is slower and slightly better.",
    ),
    click.option(
        "--joined",
        type=click.FloatRange(0, 1),
        default=0.5,
        show_default=True,
        help="Share of the recordings that are joined to windows of up to 28.5 s, 0 to 1; the others are calibrated on one by one.",
    ),
)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a recipe, as its argument `options`."""
    names = [field.name for field in fields(RecipeOptions)]

    @wraps(command)
    def with_options(**arguments: Any) -> Any:
        options = RecipeOptions(**{name: arguments.pop(name) for name in names})
        return command(**arguments, options=options)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options


def refuse_with_format() -> None:
    """Refuse options that a named format decides. Raises `click.UsageError`."""
    ctx = click.get_current_context()
    for whole, parts in (("format_name", AFFINE_OPTIONS), ("head_format", ("head_bits",)), ("encoder_format", ("encoder_bits",))):
        if ctx.params[whole] is not None and (option := first_given(*parts)):
            name = f"--{whole.removesuffix('_name').replace('_', '-')}"
            raise click.UsageError(f"{option} and {name} exclude each other: a named format has all its settings")


def refuse_with_plan() -> None:
    """Refuse options that a given plan decides. Raises `click.UsageError`."""
    if option := first_given(*FORMAT_OPTIONS):
        raise click.UsageError(f"{option} and --plan exclude each other: the plan says which layer gets which format")


def recipe_from(options: RecipeOptions) -> Recipe:
    """Return the recipe that the options stand for. Raises `RecipeError` or `click.UsageError`."""
    from sottovoce.backends.registry import target_named
    from sottovoce.core.formats import format_named
    from sottovoce.quantization.methods import method_named
    from sottovoce.quantization.recipe import Recipe

    target = target_named(options.target or DEFAULT_TARGET)
    changes = {
        "strength": _number_or_word(options.strength, "--strength", ("cross-fit", "diagnostic")),
        "ridge": _number_or_word(options.ridge, "--ridge", ("held-out",)),
        "damping": _number_or_word(options.damping, "--damping", ("held-out",)),
        "act_order": options.act_order,
        "absorb_bias": options.absorb_bias,
        "compensate_residual": options.compensate_residual,
        "curvature": options.curvature,
    }
    return Recipe(
        method=method_named(options.method, **{name: value for name, value in changes.items() if value is not None}),
        format=format_named(options.format_name)
        if options.format_name is not None
        else target.format(
            bits=int(options.bits),
            group_size=None if options.group_size == "row" else int(options.group_size),
            symmetric=options.symmetric,
            observer=options.observer,
        ),
        head_bits=None if options.head_bits is None else int(options.head_bits),
        padding_weight=options.padding_weight,
        frame_subsampling=options.frame_subsampling,
        joined=options.joined,
        rules=_rules(options),
    )


def _rules(options: RecipeOptions) -> tuple[Rule, ...]:
    from sottovoce.backends.registry import target_named
    from sottovoce.core.formats import format_named
    from sottovoce.quantization.recipe import Rule, encoder_rule, rule_named

    rules = list[Rule]()
    if options.encoder_bits is not None:
        rules.append(encoder_rule(target_named(options.target or DEFAULT_TARGET), int(options.encoder_bits)))
    if options.encoder_format is not None:
        rules.append(Rule(part="encoder", format=format_named(options.encoder_format)))
    if options.head_format is not None:
        rules.append(Rule(part="head", format=format_named(options.head_format)))
    return (*rules, *(rule_named(match, width) for match, width in options.rules))


def _number_or_word(value: str | None, option: str, words: tuple[str, ...]) -> float | str | None:
    if value is None or value in words:
        return value
    try:
        return float(value)
    except ValueError as exc:
        raise click.UsageError(f"{option} {value!r} is neither a number nor {' nor '.join(words)}") from exc
