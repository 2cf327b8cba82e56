"""Change the code at random places and count how many of the changes the tests notice (mutation testing, by cosmic-ray).

    pip install -e '.[dev,mutation]' -c constraints.txt
    python benchmarks/mutation.py [--count 200] [--seed 0] [--folders core quantization evaluation] [--only FILE:LINE ...] [--out FILE]
        [--done FILE]

A place is an operator, a number, a condition, a loop, a decorator or a handler in `src/sottovoce/FOLDER`. Type annotations are left out:
nothing executes them. So are the flags of `@dataclass` (`frozen`, `kw_only`) and `strict` of `zip`: they refuse what no code here does.
`--count` places are drawn by `--seed`, and one change is drawn for each, so an operator with eleven replacements counts as one place. Each
change is tested alone, in a copy of the repository, by the tests in `tests/FOLDER`, the mirrored file first, until one fails; then by the
test files of other folders that import the changed module. A change is killed if a test fails or the tests take three times their usual
processor time (elsewhere: `ELSEWHERE_S` a file).
The record has the survivors, and the 95 % interval of the killed share (Wilson), because the places are a sample.
`--only` runs the drawn changes of these lines again and writes no record. `--done` names a file of JSON lines: what it has for the same
code is not tested again, and what is tested is added to it, so that the command can be stopped and started.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("core", "quantization", "evaluation")
SLOWER, SPARE_S = 3, 20  # the limit: this many times the usual processor time, and seconds to spare
STALLED = 8  # times that limit, of the clock, on a busy machine
ELSEWHERE_S = 900  # of the processor, for one test file of another folder: the slowest takes a fifth of it


@dataclass(frozen=True)
class Mutant:
    """One change: the `occurrence`-th place of `operator` in a file, with the line it starts at."""

    file: str
    line: int
    operator: str
    occurrence: int
    function: str

    @property
    def folder(self) -> str:
        return Path(self.file).parent.name

    @property
    def module(self) -> str:
        return f"sottovoce.{self.folder}.{Path(self.file).stem}"

    @property
    def mirrored(self) -> str:
        return f"tests/{self.folder}/test_{Path(self.file).stem}.py"


def left_out(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where the type annotations and the flags of dataclasses and of `zip` in `source` start and end, as (line, column)."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            calls = [call for call in node.decorator_list if isinstance(call, ast.Call) and ast.unparse(call.func) == "dataclass"]
            found += [flag.value for call in calls for flag in call.keywords]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "zip":
            found += [flag.value for flag in node.keywords]
        elif isinstance(node, ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.arg) and node.annotation is not None:
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            found.append(node.returns)
    return [((at.lineno, at.col_offset), (at.end_lineno or at.lineno, at.end_col_offset or 0)) for at in found]


def mutants(root: Path, folder: str) -> dict[tuple[str, tuple[int, int], str], list[Mutant]]:
    """Return the changes that are possible in a folder, by place."""
    import cosmic_ray.plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    places: dict[tuple[str, tuple[int, int], str], list[Mutant]] = defaultdict(list)
    for file in sorted((root / "src/sottovoce" / folder).glob("*.py")):
        source = file.read_text(encoding="utf-8")
        tree, passed_over = get_ast(source), left_out(source)
        for name in sorted(cosmic_ray.plugins.operator_names()):
            operator = cosmic_ray.plugins.get_operator(name)
            if operator.arguments():
                continue
            positions = [(node, start) for node in ast_nodes(tree) for start, _ in operator().mutation_positions(node)]
            for occurrence, (node, start) in enumerate(positions):
                if any(first <= start < last for first, last in passed_over):
                    continue
                kind = name.removeprefix("core/").split("_")[0]
                mutant = Mutant(str(file.relative_to(root)), start[0], name, occurrence, function_of(node))
                places[mutant.file, start, kind].append(mutant)
    return places


def function_of(node: object) -> str:
    """Return the name of the function or class around a node of the syntax tree."""
    while node is not None and getattr(node, "type", "") not in ("funcdef", "classdef"):
        node = getattr(node, "parent", None)
    return "" if node is None else str(node.name.value)  # type: ignore[attr-defined]


def run_tests(root: Path, paths: list[str], limit_s: float) -> tuple[str, float]:
    """Run tests in a child that has torch loaded already; return "passed", "failed" or "time", and the seconds of the processor it took."""
    started = time.monotonic()
    patience_s = STALLED * limit_s  # of the clock: a change that waits for ever takes no processor time
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit_s), math.ceil(limit_s)))
        os.chdir(root)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.path[:0] = [str(root / "src"), str(root)]
        import pytest

        with contextlib.suppress(BaseException):
            os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *paths])))
        os._exit(99)
    done = status = 0
    used = 0.0
    try:
        while not done and time.monotonic() - started < patience_s:
            time.sleep(0.05)
            done, status, usage = os.wait4(child, os.WNOHANG)
            used = usage.ru_utime + usage.ru_stime
    finally:  # also where this process is stopped: the child has a session of its own
        if not done:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    late = not done or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL))
    return ("time" if late else "passed" if status == 0 else "failed"), used


def order(root: Path, mutant: Mutant) -> list[str]:
    """Return the tests of a folder, the mirrored file first."""
    own = [mutant.mirrored] if (root / mutant.mirrored).exists() else []
    return own + [name for file in sorted((root / f"tests/{mutant.folder}").glob("test_*.py"))
                  if (name := str(file.relative_to(root))) not in own]  # fmt: skip


def elsewhere(root: Path, mutant: Mutant) -> list[str]:
    """Return the test files of other folders that import the changed module, those that import the fewest modules first."""
    found = {}
    for file in sorted((root / "tests").glob("*/test_*.py")):
        modules = imported(ast.parse(file.read_text(encoding="utf-8")))
        if file.parent.name != mutant.folder and mutant.module in modules:
            found[str(file.relative_to(root))] = len(modules)
    return sorted(found, key=lambda name: found[name])


def imported(tree: ast.Module) -> set[str]:
    """Return the modules of this package that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("sottovoce.")}


def wilson(killed: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, in percent (Wilson 1927)."""
    z = 1.959964
    share, z2 = killed / count, z * z / count
    middle, half = share + z2 / 2, z * (share * (1 - share) / count + z2 / (4 * count)) ** 0.5
    return round(100 * (middle - half) / (1 + z2), 1), round(100 * (middle + half) / (1 + z2), 1)


def copy_of_repository(folder: Path) -> Path:
    """Copy the tracked and new files to `folder`."""
    listed = subprocess.run(  # noqa: S603
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def changed_lines(before: str, after: str) -> list[str]:
    """Return the first line that differs, before and after."""
    for old, new in zip(before.splitlines(), after.splitlines(), strict=False):
        if old != new:
            return [old.strip(), new.strip()]
    return ["", ""]


class Done:
    """What was found out already, in a file of JSON lines; without a file nothing is kept. `code`: hash of all that is tested."""

    def __init__(self, file: Path | None, root: Path) -> None:
        self._file, digest = file, hashlib.sha256()
        for path in sorted((root / "src").rglob("*.py")) + sorted((root / "tests").rglob("*.py")):
            digest.update(path.read_bytes())
        self.code = digest.hexdigest()[:16]
        lines = file.read_text(encoding="utf-8").splitlines() if file is not None and file.is_file() else []
        rows = [json.loads(line) for line in lines]
        self._known = {json.dumps(row["what"]): row["found"] for row in rows if row["code"] == self.code}

    def get(self, what: object) -> Any:
        return self._known.get(json.dumps(what))

    def add(self, what: object, found: object) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"code": self.code, "what": what, "found": found}) + "\n")


def test_mutants(root: Path, chosen: list[Mutant], usual_s: dict[str, float], done: Done) -> list[tuple[Mutant, str, list[str]]]:
    """Test each change alone and print its fate; `usual_s`: seconds of the tests of each folder on the code as it is."""
    import cosmic_ray.plugins
    from cosmic_ray.mutating import mutate_code

    fates = []
    for number, mutant in enumerate(chosen, 1):
        if (known := done.get(asdict(mutant))) is not None:
            fates.append((mutant, *known))
            continue
        file = root / mutant.file
        source = file.read_text(encoding="utf-8")
        changed = mutate_code(source, cosmic_ray.plugins.get_operator(mutant.operator)(), mutant.occurrence)
        file.write_text(changed, encoding="utf-8")
        try:
            outcome, seconds = run_tests(root, order(root, mutant), SLOWER * usual_s[mutant.folder] + SPARE_S)
            for other in elsewhere(root, mutant) if outcome == "passed" else ():
                outcome, more = run_tests(root, [other], ELSEWHERE_S)
                seconds += more
                if outcome != "passed":
                    outcome = "elsewhere"
                    break
        finally:
            file.write_text(source, encoding="utf-8")
        lines = changed_lines(source, changed)
        fates.append((mutant, outcome, lines))
        done.add(asdict(mutant), [outcome, lines])
        fate = "survived" if outcome == "passed" else "killed"
        print(f"{number}/{len(chosen)} {fate} in {seconds:.0f} s, {mutant.file}:{mutant.line} {mutant.operator}: {lines[1]}", flush=True)
    return fates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS), choices=FOLDERS)
    parser.add_argument("--only", nargs="+", help="the drawn changes of these lines again: FILE:LINE")
    parser.add_argument("--done", type=Path, help="what was found out before, and now")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/mutation.json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    sys.dont_write_bytecode = True  # two changes of one size and second would share a compiled file
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    import torch
    import transformers
    from transformers import MoonshineForConditionalGeneration, WhisperForConditionalGeneration  # noqa: F401 - loaded once, for each child

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mutation.") as folder:
        root = copy_of_repository(Path(folder))
        os.environ["PYTHONPATH"] = str(root / "src")
        usual_s, done = {}, Done(arguments.done, root)
        for name in arguments.folders:
            known = done.get(name)
            outcome, usual_s[name] = known or run_tests(root, [f"tests/{name}"], 1800)
            if outcome != "passed":
                sys.exit(f"the tests in tests/{name} do not pass on the code as it is: {outcome}")
            if known is None:
                done.add(name, [outcome, usual_s[name]])
            print(f"tests/{name}: {usual_s[name]:.0f} s", flush=True)
        places = [place for name in arguments.folders for place in mutants(root, name).values()]
        generator = random.Random(arguments.seed)  # noqa: S311 - a sample, no secret
        chosen = [generator.choice(place) for place in generator.sample(places, min(arguments.count, len(places)))]
        if arguments.only:
            chosen = [mutant for mutant in chosen if f"{mutant.file}:{mutant.line}" in arguments.only]
        fates = test_mutants(root, chosen, usual_s, done)
    killed = sum(outcome != "passed" for _, outcome, _ in fates)
    print(f"killed {killed} of {len(fates)}")
    if arguments.only:
        return
    record = {
        "tool": f"cosmic-ray {version('cosmic-ray')}",
        "seed": arguments.seed,
        "places": len(places),
        "sampled": len(fates),
        "killed": killed,
        "of_these_by_time": sum(outcome == "time" for _, outcome, _ in fates),
        "of_these_by_tests_of_other_folders": sum(outcome == "elsewhere" for _, outcome, _ in fates),
        "killed_percent": round(100 * killed / len(fates), 1),
        "interval_95_percent": wilson(killed, len(fates)),
        "folders": {
            name: {
                "sampled": sum(mutant.folder == name for mutant, _, _ in fates),
                "killed": sum(mutant.folder == name and outcome != "passed" for mutant, outcome, _ in fates),
            }
            for name in arguments.folders
        },
        "survivors": [asdict(mutant) | {"before": lines[0], "after": lines[1]} for mutant, outcome, lines in fates if outcome == "passed"],
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
