"""What `--help` says: commands in order and in one line each, options in sections, words that mean one thing."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import sottovoce
from sottovoce.cli.main import COMMANDS, main
from sottovoce.cli.sections import DECODING, DEVICE, FORMAT, GOAL, METHOD, OTHER, OUTPUT, SPEECH, SectionedCommand

SOURCES = sorted(Path(sottovoce.__file__).parent.rglob("*.py"))
WIDTH = 80
SECTIONED = {command.name: command for command in COMMANDS if isinstance(command, SectionedCommand)}
TITLES = (SPEECH, GOAL, FORMAT, METHOD, DECODING, DEVICE, OUTPUT, OTHER)


def help_of(*command: str) -> str:
    result = CliRunner().invoke(main, [*command, "--help"], prog_name="sottovoce", terminal_width=WIDTH)
    assert result.exit_code == 0
    return result.stdout


def test_commands_stand_in_the_order_in_which_they_are_needed_one_line_each() -> None:
    lines = help_of().split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in lines] == [command.name for command in COMMANDS]
    assert [line.split()[0] for line in lines][:5] == ["demo", "quantize", "evaluate", "transcribe", "export"]
    for line in lines:
        assert len(line) <= WIDTH, line
        assert line.endswith("."), line
        assert "..." not in line, line


@pytest.mark.parametrize("word", ["MODEL:", "DATA:", "Exit codes:"])
def test_the_help_says_what_arguments_are_and_how_commands_end(word: str) -> None:
    assert word in help_of()


@pytest.mark.parametrize("name", sorted(SECTIONED))
def test_every_option_stands_in_one_section(name: str) -> None:
    command, shown = SECTIONED[name], help_of(name)
    shown = shown[min(shown.index(f"\n{title}:\n") for title in TITLES if f"\n{title}:\n" in shown) :]  # prose may name options too
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.opts[0] for option in options if command.section_of(option) == OTHER] == []
    for option in options:
        (place,) = re.finditer(rf"^  {re.escape(option.opts[0])}\b(?!-)", shown, flags=re.M)
        heading = re.findall(r"^(\w[\w ]+):$", shown[: place.start()], flags=re.M)[-1]
        assert heading == command.section_of(option)
    headings = [title for title in re.findall(r"^(\w[\w ]+):$", shown, flags=re.M) if title in TITLES]
    assert headings == sorted(headings, key=TITLES.index)
    assert headings[-1] == OTHER


@pytest.mark.parametrize("name", ["quantize", "fit", "tune", "evaluate", "certify"])
def test_commands_with_many_options_have_sections(name: str) -> None:
    assert {SPEECH, DEVICE, OUTPUT} <= {SECTIONED[name].section_of(option) for option in SECTIONED[name].params}


@pytest.mark.parametrize("name", ["certify", "fit", "push", "tune"])
def test_long_commands_say_how_they_end(name: str) -> None:
    prose = (main.commands[name].help or "").split("\b")[0]
    assert "Exit codes: 0 done, 1 refused" in prose
    sentences = re.findall(r"[.:] |\.\n", prose.split("Exit codes")[0])
    assert 3 <= len(sentences) <= 8
    assert "It needs" in prose or "needs" in prose


def test_texts_are_references_and_the_model_compared_with_is_the_original() -> None:
    found = [file.name for file in SOURCES if re.search(r"reference system|against the reference\b", file.read_text(encoding="utf-8"))]
    assert found == []
