"""One name for each runtime in all messages: that of its record, not an alias."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sottovoce
from sottovoce.backends.formats import known_formats
from sottovoce.backends.registry import BACKENDS

SOURCES = sorted(Path(sottovoce.__file__).parent.rglob("*.py"))
ALIASES = "|".join(re.escape(alias) for backend in BACKENDS.values() for alias in backend.aliases)
# Packages and libraries may be called the same: what stands where a runtime is named counts.
AS_RUNTIME = re.compile(rf"(?:--target|--runtime|runtime|export(?: it)? to|\.\.\.|\bor) (?:{ALIASES})(?![\w.:'-])")


def texts(tree: ast.AST) -> Iterator[str]:
    """What is raised in words, with {} for what is filled in."""
    for raised in ast.walk(tree):
        if isinstance(raised, ast.Raise):
            for node in ast.walk(raised):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_no_message_names_a_runtime_by_an_alias() -> None:
    found = [(file.name, text) for file in SOURCES for text in texts(ast.parse(file.read_text())) if AS_RUNTIME.search(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_alias"),
    [
        ("export it to gguf", True),
        ("to transcribe.cpp or onnx", True),
        ("written by `sottovoce export ... onnx` is wanted", True),
        ("again with --target ggml", True),
        ("exporting to ONNX needs onnx and onnxscript", False),
        ("export it to onnxruntime", False),
        ("ggml has no blocks for it", False),
    ],
)
def test_what_counts_as_the_name_of_a_runtime(text: str, is_alias: bool) -> None:
    assert bool(AS_RUNTIME.search(text)) == is_alias


DOCUMENTED = (Path(__file__).parents[2] / "docs/runtimes.md").read_text(encoding="utf-8")


def types_in(cell: str) -> set[str]:
    """The types of one cell of the table: "2, 4, 8 bits, NF4" is "2 bits", "4 bits", "8 bits" and "NF4"."""
    names = [name.removesuffix(" bits") for name in cell.split(", ")]
    return {f"{name} bits" if name.isdigit() else name for name in names}


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"torch"}))
def test_the_documented_types_are_those_of_the_record(name: str) -> None:
    row = next(line for line in DOCUMENTED.splitlines() if line.startswith(f"| `{name}` |"))
    held = {
        kind_of(holder.stored or number_format.title, number_format.code_bits)
        for number_format in known_formats()
        for holder in number_format.holders
        if holder.backend == name
    }
    assert types_in(row.strip("| ").split(" | ")[-1]) == held


def kind_of(stored: str, bits: int) -> str:
    """The documented name of a type: "affine, 4 bits" and "int4" are "4 bits", "nvfp4 without a scale of the tensor" is "NVFP4"."""
    if "fp4" in stored.lower():
        return stored.upper().split()[0]
    return stored if stored[0].isupper() or stored.endswith("bits") and "," not in stored else f"{bits} bits"


def test_the_documented_runtimes_are_all() -> None:
    found = re.search(r"`--runtime (.+?)`", DOCUMENTED)
    assert found is not None
    assert set(found[1].split("|")) == set(BACKENDS)
