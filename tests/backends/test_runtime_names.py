"""One name for each runtime in all messages: that of its record, not an alias."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sottovoce
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
