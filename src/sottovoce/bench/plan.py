"""A bench recipe (TOML) and the cells it stands for.

models = ["bundled:tiny.en"]
methods = ["rtn", "gptq", "qep", "fade"]
bits = [4, 3]                                # affine formats by their width, and, or in its place:
formats = ["q4_0", "int3"]                   # formats by name (sottovoce formats)
seeds = [0, 1, 2]
data = ["dev-librispeech", "dev-home"]       # folders or manifests, relative to --data
calibration = "calibration"
utterances = 128                             # drawn from it by each seed

# optional, with their defaults
target = "compressed-tensors"                # or "onnxruntime", "transcribe.cpp", "whisper.cpp", "torch"
runtimes = ["torch"]                         # what transcribes: also other backends, if the target suits them
group_size = 32                              # 32, 64, 128 or "row"
symmetric = false                            # (true for transcribe.cpp and whisper.cpp)
observer = "mse"
head_bits = 16                               # 16 leaves the head, so that methods compare as in the literature; "same": as the rest
frame_subsampling = 3
padding_weight = 0.0
joined = 0.5                                 # share of the recordings that are joined to full windows
batch_size = 8
language = "en"
limit = 40                                   # only the first so many recordings of each data set (default: all)

[method.qep-strong]                          # a further method: a known one with other settings,
base = "qep"
strength = 1.0
frame_subsampling = 1                             # of the method or, from group_size to joined, of the recipe
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from sottovoce.backends.registry import DEFAULT_RUNTIME, DEFAULT_TARGET, backend_named, target_named
from sottovoce.bench.records import ORIGINAL
from sottovoce.core.formats import COMMON_WIDTH, format_named
from sottovoce.errors import RecipeError
from sottovoce.models.languages import DETECT
from sottovoce.quantization.methods import METHODS, Method, method_named
from sottovoce.quantization.recipe import Recipe

FORMAT_SETTINGS = ("group_size", "symmetric", "observer")
SAME = "same"  # of head_bits: as the rest
SETTINGS = (*FORMAT_SETTINGS, "head_bits", "frame_subsampling", "padding_weight", "joined")
KNOWN = {
    "models", "methods", "bits", "formats", "seeds", "data", "calibration", "utterances", "batch_size", "language", "method", "target",
    "runtimes", "limit", *SETTINGS,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """One quantized model of the grid. `format`: its name, if it was asked for by name. `seed` is None where nothing depends on it."""

    model: str
    method: str
    bits: int
    format: str | None
    recipe: Recipe
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What to measure.

    `content`: what was in the recipe file, from which all else follows. `data`: names of the test sets, as in the recipe;
    `calibration`: of the calibration set. `limit`: recordings of each test set, from the first.
    `settings`: of every recipe; `own_settings`: of single methods, by name, in their place.
    """

    content: Mapping[str, Any]
    models: tuple[str, ...]
    methods: Mapping[str, Method]
    bits: tuple[int, ...]
    formats: tuple[str, ...]
    seeds: tuple[int, ...]
    data: tuple[str, ...]
    calibration: str | None
    utterances: int
    batch_size: int
    language: str | None
    limit: int | None = None
    target: str = DEFAULT_TARGET
    runtimes: tuple[str, ...] = (DEFAULT_RUNTIME,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    own_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def quantizations(self) -> list[Quantization]:
        """All quantized models: by model, then bits, seed and method, so that a bench stopped half-way can be compared."""
        found = []
        for model in self.models:
            for bits, name_of_format in self.widths():
                for i, seed in enumerate(self.seeds):
                    for name, method in self.methods.items():
                        if method.n_networks == 0 and i > 0:
                            continue
                        found.append(
                            Quantization(
                                model=model,
                                method=name,
                                bits=bits,
                                format=name_of_format,
                                recipe=self.recipe(name, bits, name_of_format),
                                seed=seed if method.n_networks else None,
                            )
                        )
        return found

    def widths(self) -> list[tuple[int, str | None]]:
        """Bits of one code, and the name of the format where there is one."""
        return [*((bits, None) for bits in self.bits), *((format_named(name).code_bits, name) for name in self.formats)]

    def recipe(self, method: str, bits: int, named: str | None = None) -> Recipe:
        """The recipe of the method called `method` at `bits` bits, or in the format called `named`."""
        own = {**self.settings, **self.own_settings.get(method, {})}
        grid = {key: own.pop(key) for key in FORMAT_SETTINGS if key in own}
        if grid.get("group_size") == "row":
            grid["group_size"] = None
        if own.get("head_bits") == SAME:
            own["head_bits"] = None
        number_format = target_named(self.target).format(bits=bits, **grid) if named is None else format_named(named)
        return Recipe(method=self.methods[method], format=number_format, **own)


def read_plan(file: str | Path, **changes: Any) -> BenchPlan:
    """Read the plan in a TOML file, with some of its settings replaced. Raises `RecipeError` as `plan_from` does."""
    try:
        content = tomllib.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as exc:
        raise RecipeError(f"{file}: cannot be read ({exc.strerror}); a TOML file is wanted") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise RecipeError(f"{file}: is not TOML ({exc})") from exc
    try:
        return plan_from({**content, **changes})
    except RecipeError as exc:
        raise RecipeError(f"{file}: {exc}") from exc


def plan_from(content: Mapping[str, Any]) -> BenchPlan:
    """Make a plan of what a recipe file holds. Raises `RecipeError` for anything unknown, missing or out of range."""
    if unknown := sorted(content.keys() - KNOWN):
        raise RecipeError(f"{unknown[0]!r} is not a setting of a bench; known are {', '.join(sorted(KNOWN))}")
    try:
        return _plan(content)
    except TypeError as exc:
        raise RecipeError(str(exc)) from exc


def _plan(content: Mapping[str, Any]) -> BenchPlan:
    methods, own_settings = dict(METHODS), dict[str, dict[str, Any]]()
    own = content.get("method", {})
    if not isinstance(own, dict):
        raise RecipeError(f'"method" must be tables of methods, [method.NAME], got {own!r}')
    for name, changes in own.items():
        if name == ORIGINAL:
            raise RecipeError(f"a method cannot be called {name!r}: that is the full-precision model in the tables; choose another name")
        if not isinstance(changes, dict) or "base" not in changes:
            raise RecipeError(f'method {name!r} needs a "base", one of {", ".join(METHODS)}')
        own_settings[name] = {key: value for key, value in changes.items() if key in SETTINGS}
        rest = {key: value for key, value in changes.items() if key not in (*SETTINGS, "base")}
        methods[name] = method_named(changes["base"], **rest)
    names = _list(content, "methods", str)
    if missing := [name for name in names if name not in methods]:
        raise RecipeError(f"method {missing[0]!r} is not known; choose from {', '.join(methods)}")
    settings = {"head_bits": 16} | {key: content[key] for key in SETTINGS if key in content}
    plan = BenchPlan(
        content=dict(content),
        models=_list(content, "models", str),
        methods={name: methods[name] for name in names},
        bits=_list(content, "bits", int) if "bits" in content or "formats" not in content else (),
        formats=_list(content, "formats", str) if "formats" in content else (),
        seeds=_list(content, "seeds", int),
        data=_list(content, "data", str),
        calibration=_one(content, "calibration", str, None),
        utterances=_one(content, "utterances", int, 128),
        batch_size=_one(content, "batch_size", int, 8),
        language=_one(content, "language", str, None),
        limit=_one(content, "limit", int, None),
        target=backend_named(_one(content, "target", str, DEFAULT_TARGET)).name,
        runtimes=_runtimes(content),
        settings=settings,
        own_settings=own_settings,
    )
    for setting, value in (("limit", plan.limit), ("utterances", plan.utterances), ("batch_size", plan.batch_size)):
        if value is not None and value < 1:
            raise RecipeError(f"{setting!r} must be at least 1 recording, got {value}")
    if plan.language == DETECT:
        raise RecipeError("'language' must be the code of one language, or left out: a bench compares words that are scored alike")
    if plan.calibration is None and any(method.n_networks for method in plan.methods.values()):
        raise RecipeError('these methods calibrate on speech: name it with "calibration"')
    _check_runtimes(plan)
    return plan


def _check_runtimes(plan: BenchPlan) -> None:
    """Refuse runtimes whose files cannot hold the codes: else each of their cells would fail, after the model was quantized."""
    formats = dict.fromkeys(one.recipe.format for one in plan.quantizations())  # what is out of range is refused here, too
    exporting = [backend for backend in map(backend_named, plan.runtimes) if backend.write is not None]
    for backend, number_format in product(exporting, formats):
        if (reason := backend.target.misfit(number_format, "encoder", COMMON_WIDTH)) is not None:
            raise RecipeError(f"{reason}; name a target that {backend.name} executes, or leave {backend.name} out of the runtimes")


def _runtimes(content: Mapping[str, Any]) -> tuple[str, ...]:
    if "runtimes" not in content:
        return (DEFAULT_RUNTIME,)
    return tuple(backend_named(name).name for name in _list(content, "runtimes", str))


def _list(content: Mapping[str, Any], key: str, kind: type) -> tuple[Any, ...]:
    value = content.get(key)
    if not isinstance(value, list) or not value or not all(type(item) is kind for item in value):
        raise RecipeError(f"{key!r} must be a list of {'names' if kind is str else 'whole numbers'}, got {value!r}")
    if len(set(value)) < len(value):
        raise RecipeError(f"{key!r} names something twice: {value!r}")
    return tuple(value)


def _one(content: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = content.get(key, default)
    if value is not default and type(value) is not kind:
        raise RecipeError(f"{key!r} must be {'a name' if kind is str else 'a whole number'}, got {value!r}")
    return value
