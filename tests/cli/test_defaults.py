"""An option that a command and its function both have has one default: whoever writes a script may leave it out in either."""

import inspect
from collections.abc import Callable
from typing import Any

import click
import pytest

from sottovoce import api
from sottovoce.cli.main import main
from sottovoce.evaluation.context import Context, as_context
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.tune_record import TuneSettings
from sottovoce.report.page import write_report

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "quantize": api.quantize,
    "fit": api.fit,
    "tune": api.tune,
    "evaluate": api.evaluate,
    "transcribe": api.transcribe,
    "score": api.score,
    "certify": api.certify,
    "confidence": api.fit_confidence,
    "export": api.export,
    "push": api.push,
    "report": write_report,
}
# One name, two meanings, or a value that the command line writes otherwise.
OTHERWISE = {
    "quantize": {"calibration", "tune", "target"},
    "fit": {"calibration"},
    "tune": {"calibration"},
    "evaluate": {"fallback"},
    "transcribe": {"fallback", "confidence"},
    "certify": {"fallback", "audio"},
}


def is_unset(default: Any) -> bool:
    return default is None or default is False or str(default) == "Sentinel.UNSET"


def shared(command: str) -> list[tuple[str, Any, Any]]:
    """Options of a command that are parameters of its function: name, default on the command line, default in Python."""
    parameters = inspect.signature(FUNCTIONS[command]).parameters
    options = {option.name: option for option in main.commands[command].params if isinstance(option, click.Option)}
    return [
        (name, option.default, parameters[name].default)
        for name, option in options.items()
        if name in parameters and name not in OTHERWISE.get(command, ()) and not option.required
    ]


@pytest.mark.parametrize("command", FUNCTIONS)
def test_a_command_and_its_function_have_the_same_defaults(command: str) -> None:
    found = shared(command)
    assert found
    for name, given, there in found:
        here = as_context(given) if isinstance(there, Context) else given
        assert there in {None, False} if is_unset(here) else here == there, name


@pytest.mark.parametrize(("command", "settings"), [("quantize", Recipe), ("tune", TuneSettings)])
def test_a_command_and_its_settings_have_the_same_defaults(command: str, settings: type) -> None:
    fields = settings.__dataclass_fields__  # type: ignore[attr-defined]
    for option in main.commands[command].params:
        if option.name in fields and option.name not in {"method", "format", "rules"} and isinstance(option, click.Option):
            assert is_unset(option.default) or option.default == fields[option.name].default, option.name
