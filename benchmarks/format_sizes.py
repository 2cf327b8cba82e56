"""Measure how large the file of a model is in every named format that a runtime holds for all of its layers, head and embedding included.

    python benchmarks/format_sizes.py [--models tiny.en base] [--runtimes whisper.cpp transcribe.cpp mlx]

Each file is written with codes of zero: its size does not depend on them. Nothing is calibrated and nothing is transcribed.
"""

from common import RESULTS, script_parser, write_json

from sottovoce import api
from sottovoce.backends.registry import backend_named
from sottovoce.cli.console import quiet_libraries
from sottovoce.core.formats import EXPERIMENTS, NAMED
from sottovoce.errors import ExportError, RecipeError
from sottovoce.fitting.size import file_bytes
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.versions import environment

OUT = RESULTS / "format_sizes.json"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--runtimes", nargs="+", default=["whisper.cpp", "transcribe.cpp", "mlx"])
    arguments = parser.parse_args()
    quiet_libraries()
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name in arguments.models:
        model = api.load(f"bundled:{name}")
        for runtime in arguments.runtimes:
            backend, sizes = backend_named(runtime), dict[str, int]()
            for title, number_format in NAMED.items():
                if isinstance(number_format, EXPERIMENTS):
                    continue
                recipe = Recipe(method=METHODS["rtn"], format=number_format)
                try:
                    sizes[title] = file_bytes(model, api.make_plan(model, recipe, target=backend.name), backend)
                except (ExportError, RecipeError):  # the runtime does not hold it, or not in rows of this width
                    continue
                print(f"{name} {runtime} {title}: {sizes[title] / 1e6:.1f} MB", flush=True)
            found.setdefault(name, {})[backend.name] = sizes
    write_json(OUT, {"bytes": found, "versions": environment()})


if __name__ == "__main__":
    main()
