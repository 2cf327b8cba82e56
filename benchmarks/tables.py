"""Write the tables of README.md and of pages in docs/ from the committed results.

    python benchmarks/tables.py [--check]

A table stands between `<!-- table: NAME ARGUMENTS -->` and `<!-- end of table -->`; all else is left as it is. Tables of benches are
made from `results.csv`, which `sottovoce bench --tables-only` makes from `evaluations.jsonl`. With `--check` nothing is written, and
the exit code is 1 if a table differs from the results.
"""

import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import MODELS, RESULTS, SETS, bench_rows, script_parser, sizes_by_format

from sottovoce.bench import plan_from
from sottovoce.bench.records import ORIGINAL
from sottovoce.core.formats import COMMON_WIDTH, NAMED

ROOT = Path(__file__).resolve().parent.parent
WITH_TABLES = (
    "results", "calibration", "certificates", "contexts", "tuning", "devices", "number_systems", "fit", "error_statistics", "runtimes",
    "formats",
)  # fmt: skip
PAGES = (ROOT / "README.md", *(ROOT / f"docs/{name}.md" for name in WITH_TABLES))
TABLE = re.compile(r"(<!-- table: (.+?) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)

METHODS = {
    "none": "full precision",
    "rtn": "RTN",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "gptq-tuned": "GPTQ, tuned",
    "qep": "GPTQ + QEP(0.5)",
    "qep-tuned": "GPTQ + QEP, tuned",
    "fade-diagnostic": "FADE, diagnostic",
    "fade": "**FADE, cross-fit**",
}
FORMAT_METHODS = {
    "rtn": "RTN, ggml's fit",
    "rtn-imatrix": "RTN, importance matrix",
    "gptq": "GPTQ, unweighted grid",
    "fade": "**FADE**",
}
OPTIONS = {
    "fade": "default",
    "fade-without-bias": "errors not absorbed into biases",
    "fade-own-outputs": "layers aim at their own outputs, not at the residual stream",
    "fade-unweighted-scales": "scales searched without weights from the Hessian",
    "fade-minmax": "scales from the range (minmax), not searched",
    "fade-original-order": "columns in their original order (and so without weighted scales and held-out damping)",
    "fade-fixed": "ridge and damping fixed at 0.1",
    "fade-every-frame": "every audio frame counts, not every third",
    "fade-padding": "frames beyond the end of the audio have weight 0.1",
}
FIT_OTHERS = ("bits in the encoder", "sensitivities")  # schedules beside a fit, by a part of their titles in `fitting.baselines`
SHIPPED = (
    "float32, PyTorch",
    "4 bits FADE, transcribe.cpp",
    "4 bits FADE, whisper.cpp",
    "4 bits FADE, ONNX Runtime",
    "4 bits FADE, 8-bit encoder, ONNX Runtime",
    "4 bits RTN, transcribe.cpp",
    "8 bits RTN (Q8_0), transcribe.cpp",
    "float16, transcribe.cpp",
    "float16, whisper.cpp",
    "float32, ONNX Runtime",
    "dynamic int8 encoder, ONNX Runtime",
    "int8, faster-whisper",
    "float32, faster-whisper",
    "int8 weights as shipped, ONNX Runtime",
)
TITLES = {  # in tables, where the name of the results says what computes and the size is that of the file
    "float32, PyTorch": "float32 from a float16 file, PyTorch",
    "float32, ONNX Runtime": "float32 from a float16 file, ONNX Runtime",
    "float32, faster-whisper": "float32 from a float16 file, faster-whisper",
    "int8, faster-whisper": "int8 from a float16 file, faster-whisper",
}
PARITY = (
    "4 bits FADE, transcribe.cpp",
    "4 bits FADE, whisper.cpp",
    "4 bits FADE, ONNX Runtime",
    "4 bits FADE, float32 activations, ONNX Runtime",
    "4 bits FADE, 8-bit encoder, ONNX Runtime",
    "2 bits FADE, ONNX Runtime",
    "2 bits FADE, float32 activations, ONNX Runtime",
)
SYSTEMS_OF_WORDS = {"original": "the original", "torch": "quantized, PyTorch", "mlx": "quantized, mlx-whisper"}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table differs from the results")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        text = page.read_text()
        current = TABLE.sub(lambda found: found[1] + "\n" + _table(found[2]) + "\n\n" + found[4], text)
        if current != text:
            stale.append(page.name)
            if not check:
                page.write_text(current)
    if stale:
        print(f"{'differ from the results' if check else 'written'}: {', '.join(stale)}")
    sys.exit(1 if check and stale else 0)


def _table(asked: str) -> str:
    name, *arguments = asked.split()
    return TABLES[name](*arguments)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Write a table whose first `words` columns hold words and whose others hold figures."""
    rules = ["---"] * words + ["---:"] * (len(head) - words)
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "|".join(rules) + "|", *lines[1:]])


def _lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / file).read_text().splitlines()]


def _rows(folder: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Read the rows of a bench by method, bits and data set."""
    return {(row["method"], row["bits"], row["data"]): row for row in bench_rows(folder)}


def _figure(row: dict[str, str], mean: str, deviation: str, digits: int, scale: int = 1) -> str:
    spread = f" ± {scale * float(row[deviation]):.{digits}f}" if int(row["seeds"]) > 1 else ""
    return f"{scale * float(row[mean]):.{digits}f}{spread}"


def methods(folder: str, bits: str, *sets: str) -> str:
    """Show every method at `bits`: error rate, capped error rate and divergence on every set, and loops on all."""
    rows = _rows(folder)
    head = ["method", "seeds", *(title for name in sets for title in (f"{SETS[name]} WER %", "capped", "KL")), "loops"]
    table = []
    for method, title in METHODS.items():
        found = [rows.get((method, "16" if method == "none" else bits, name)) for name in sets]
        if not any(found):
            continue
        figures = list[str]()
        for row in found:
            figures += ["", "", ""] if row is None else _three(row)
        seeds = "" if method in ("none", "rtn") else " to ".join(sorted({row["seeds"] for row in found if row}))
        table.append([title, seeds, *figures, f"{sum(float(row['looped']) for row in found if row):.1f}"])
    return _markdown(head, table)


def _three(row: dict[str, str]) -> list[str]:
    return [
        _figure(row, "wer", "deviation", 1, 100),
        _figure(row, "capped", "capped_deviation", 1, 100),
        _figure(row, "mean_kl", "kl_deviation", 3),
    ]


def options() -> str:
    """Show what each option of FADE is worth, best first."""
    rows = {method: row for (method, bits, _), row in _rows("options").items() if bits == "3"}
    ranked = sorted(rows.values(), key=lambda row: float(row["mean_kl"]))
    return _markdown(["FADE", "KL"], [[OPTIONS[row["method"]], f"{float(row['mean_kl']):.4f}"] for row in ranked])


def _title(system: str, model: str) -> str:
    """Name a system; Moonshine's weights come from no float16 file."""
    return TITLES.get(system, system) if model != "moonshine-base" else system.replace("PyTorch", "PyTorch (size as float16)")


def _systems(model: str) -> dict[str, Any]:
    systems: dict[str, Any] = json.loads((RESULTS / f"runtimes/{model}.json").read_text())["systems"]
    return systems


def runtimes(model: str) -> str:
    """Show the systems that run a model: size, words, speed and memory."""
    head = [MODELS[model], "size MB", *(f"{title} WER %" for title in SETS.values())]
    head += ["encoder s", "decoder s", "audio s per s", "memory MB"]
    table = []
    for name, system in ((name, found) for name in SHIPPED if (found := _systems(model).get(name))):
        row = [f"**{name}**" if "FADE" in name else _title(name, model), f"{system['bytes'] / 1e6:.1f}"]
        row += [_words(system["sets"].get(data)) for data in SETS]
        speed = system.get("speed")
        if speed:
            row += [f"{speed['encoder_s']:.2f}", f"{speed['decoder_s']:.2f}", f"{speed['rtfx']:.1f}"]
            row += [f"{system['memory_bytes'] / 1e6:.0f}"]
        table.append(row + [""] * (len(head) - len(row)))
    return _markdown(head, table)


def processor(model: str) -> str:
    """Name the processor that the times of a model's runtimes were taken on."""
    found = json.loads((RESULTS / f"runtimes/{model}.json").read_text())
    if isinstance(found["processor"], str):  # as files of earlier versions have it
        return f"Times of {MODELS[model]}: an {found['processor']} machine whose model and instruction sets were not recorded."
    sets = ", ".join(name.upper().replace("_", "-") for name in found["processor"]["instruction_sets"])
    threads = " and ".join(map(str, found["speed_threads"]))
    return f"Times of {MODELS[model]}: {found['processor']['name']} ({sets}), {threads} thread{'s' * (threads != '1')}."


def contexts(name: str = "contexts") -> str:
    """Show the processor seconds that a clip of each length takes, with whole windows and with short contexts."""
    found = json.loads((RESULTS / f"{name}.json").read_text())
    lengths = next(iter(found["systems"].values()))["lengths"]
    table = [
        [_title(name, found["model"]), one["context"], f"{one['bytes'] / 1e6:.1f}", f"{one['memory_bytes'] / 1e6:.0f}",
         *(f"{times['cpu_s']:.2f}" for times in one["lengths"].values()),
         "" if one["words_of_original"] is None else f"{one['words_of_original']} of {found['clips']}", str(one["loops"])]
        for name, one in found["systems"].items()
    ]  # fmt: skip
    head = [MODELS[found["model"]], "context", "size MB", "memory MB", *(f"{length} s" for length in lengths)]
    return _markdown([*head, "same words as the original", "new loops"], table)


def _words(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return _rate(100 * found["wer"], found["loops"])


def _rate(percent: float, loops: int) -> str:
    return _with_loops(f"{percent:.1f}", loops)


def _with_loops(rate: str, loops: float) -> str:
    """Add a count of loops, which is a mean where there are several draws."""
    count = f"{loops:.0f}" if loops == round(loops) else f"{loops:.1f}"
    return rate + (f", {count} loop{'' if loops == 1 else 's'}" if loops else "")


def paired(model: str) -> str:
    """Show the GGUF file's error rates minus those of others on the same utterances, in points, with 95 % intervals."""
    table = []
    for other, sets in _systems(model)["4 bits FADE, transcribe.cpp"]["paired"].items():
        row = [f"against {_title(other, model)}"]
        for data in SETS:
            found = sets[data]
            row.append(f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})")
        table.append(row)
    return _markdown([MODELS[model], *SETS.values()], table)


def parity(model: str) -> str:
    """Show how often a runtime gives PyTorch's very words, and by how many points its error rate differs."""
    table = []
    for name, system in ((name, found) for name in PARITY if (found := _systems(model).get(name))):
        sets = [system["sets"].get(data, {}) for data in SETS]
        if any("wer_simulated" in found for found in sets):
            table.append([name, *map(_same, sets)])
    return _markdown([MODELS[model], *SETS.values()], table)


def _same(found: dict[str, Any]) -> str:
    if "wer_simulated" not in found:
        return ""
    share = found["same_words_as_simulated"] / found["utterances"]
    return f"{100 * share:.0f} % ({100 * (found['wer'] - found['wer_simulated']):+.1f})"


def demo() -> str:
    """Show the demo's three systems."""
    found, table = json.loads((RESULTS / "demo.json").read_text()), []
    for name, system in found["systems"].items():
        low, high = system["interval_percent"]
        title, kl = ("float16", "") if name == "float" else (f"{found['bits']} bits, {name}", f"{system['mean_kl']:.3f}")
        table.append(
            [title, f"{system['bytes'] / 1e6:.1f} MB", f"{system['wer_percent']:.1f} %", f"{low:.1f} to {high:.1f}", kl,
             str(len(system["looped"]))]
        )  # fmt: skip
    return _markdown(["Whisper tiny.en", "size", "WER", "95 % interval", "KL", "loops"], table)


def demo_difference() -> str:
    """Show the interval of the difference between FADE and plain rounding in the demo."""
    found = json.loads((RESULTS / "demo.json").read_text())["systems"]["FADE"]["paired"]
    low, high = found["interval_percent"]
    return f"FADE against plain rounding: {found['difference_percent']:+.1f} points of WER, 95 % interval {low:+.1f} to {high:+.1f}."


def certificates() -> str:
    """Show the bounds over utterances and over speakers of the stored certificates, each beside what was counted."""
    losses = ("changed", "disagreement", "looped", "empty", "worse", "wer_increase")
    table = []
    for file in sorted((RESULTS / "certificates").glob("*.json")):
        found = json.loads(file.read_text())
        model = found["reference"].removeprefix("bundled:")
        for unit in ("utterance", "speaker"):
            said = {one["loss"]: one for one in found["statements"] if one["unit"] == unit}
            if said:
                cells = [f"{100 * said[loss]['bound']:.1f} ({100 * said[loss]['estimate']:.1f})" for loss in losses]
                table.append([f"{model}, {found['runtime']}", f"{found['bytes'] / 1e6:.1f}", f"{said['changed']['n']} {unit}s", *cells])
    return _markdown(
        ["at most (counted)", "MB", "over", "changed %", "words of 100 that differ", "new loops %", "new empties %", "worse %",
         "WER increase, points"],
        table,
    )  # fmt: skip


def tuned(name: str) -> str:
    """Show a model before and after tuning: KL and words on each set, at each encoder context."""
    found = json.loads((RESULTS / f"tuning/{name}.json").read_text())
    table, measured = [], [data for data in SETS if data in found["sets"]]
    for system in found["sets"][measured[0]]["words"]:
        row, kind = [system], system.partition(",")[0]
        for data in measured:
            own = found["sets"][data]
            kl = own["kl"].get(kind) if system.endswith("full") else None
            words = own["words"][system]
            row += ["" if kl is None else f"{kl:.3f}", _rate(words["capped_wer_percent"], len(words["looped"]))]
        table.append(row)
    with_kl = any(own["kl"] for own in found["sets"].values())
    head = ["system, context", *(f"{SETS[data]} {what}" for data in measured for what in ("KL", "WER %"))]
    if not with_kl:
        head, table = [head[0], *head[2::2]], [[row[0], *row[2::2]] for row in table]
    return _markdown(head, table)


def words(name: str) -> str:
    """Show the words of a quantized folder beside its original's: errors on each set, and the difference with its interval."""
    found = json.loads((RESULTS / f"words/{name}.json").read_text())["sets"]
    table = []
    for system in next(iter(found.values()))["systems"]:
        row = [SYSTEMS_OF_WORDS.get(system, system)]
        for data in found:
            own = found[data]["systems"][system]
            row.append(_rate(own["capped_wer_percent"], len(own["looped"])))
            if (beside := own.get("against_original")) is not None:
                low, high = beside["interval_points"]
                row[-1] += f" ({beside['difference_points']:+.1f}, {low:+.1f} to {high:+.1f})"
            if "same" in own:
                row[-1] += f"; {own['same']} of {found[data]['utterances']} the same"
        table.append(row)
    return _markdown(["", *(f"{SETS[data]} WER %" for data in found)], table)


def formats(folder: str, runtime: str) -> str:
    """Show the number formats of a bench, and the methods where there are several, by falling faithfulness.

    Bits per weight, the size of the file in `runtime` (none: it does not hold the format), divergence and capped error rate on every set,
    mean and deviation where there are several draws.
    """
    found = {(row["format"] or row["bits"], row["method"], row["data"]): row for row in bench_rows(folder)}
    kinds = {key[:2] for key in found if all((*key[:2], data) in found for data in SETS)}  # measured on every set
    by_faith = sorted(kinds, key=lambda kind: sum(float(found[*kind, data]["mean_kl"]) for data in SETS))
    several = len({method for _, method in kinds if method != ORIGINAL}) > 1
    (model,) = {row["model"] for row in found.values()}
    sizes = sizes_by_format()[model.removeprefix("bundled:")][runtime]
    plan = plan_from(json.loads((RESULTS / folder / "bench.json").read_text())["recipes"][0])
    table = []
    for name, method in by_faith:
        if method == ORIGINAL:
            row = ["the original", *([""] if several else []), "32", ""]
        else:
            number_format = NAMED.get(name) or plan.recipe(method, int(name)).format
            row = [f"`{name}`" if name in NAMED else number_format.title, *([FORMAT_METHODS[method]] if several else [])]
            row += [f"{number_format.bits_per_weight(COMMON_WIDTH):.4g}", f"{sizes[name] / 1e6:.1f}" if name in sizes else ""]
        for data in SETS:
            own = found[name, method, data]
            kl = "" if method == ORIGINAL else _figure(own, "mean_kl", "kl_deviation", 3)
            row += [kl, _with_loops(_figure(own, "capped", "capped_deviation", 1, 100), float(own["looped"]))]
        table.append(row)
    head = ["format", *(["method"] if several else []), "bits", "MB"]
    return _markdown([*head, *(f"{title} {what}" for title in SETS.values() for what in ("KL", "WER %"))], table, words=1 + several)


def format_sizes() -> str:
    """Show how large the files of models are in each named format, by runtime."""
    found = sizes_by_format()
    columns = {f"{model}, {runtime}": sizes for model, own in found.items() for runtime, sizes in own.items()}
    bits = {name: NAMED[name].bits_per_weight(COMMON_WIDTH) for sizes in columns.values() for name in sizes}
    table = []
    for name in sorted(bits, key=lambda name: (bits[name], name)):
        megabytes = [f"{sizes[name] / 1e6:.1f}" if name in sizes else "" for sizes in columns.values()]
        table.append([f"`{name}`", f"{bits[name]:.4g}", *megabytes])
    return _markdown(["format", "bits", *columns], table)


def format_speeds() -> str:
    """Show processor time of encoder and decoder for each clip, memory, and equal transcripts, by format and runtime."""
    found = json.loads((RESULTS / "format_speeds.json").read_text())
    systems = {(row["backend"], row["format"]): row for row in found["systems"]}
    backends = sorted({backend for backend, _ in systems}, reverse=True)
    parts = ("encoder s", "decoder s", "memory MB", "same")
    bits = {name: NAMED[name].bits_per_weight(COMMON_WIDTH) if name in NAMED else 16 for _, name in systems}
    table = []
    for name in sorted(bits, key=lambda name: (bits[name], name)):
        row = [f"`{name}`" if name in NAMED else name]
        for backend in backends:
            if (own := systems.get((backend, name))) is None:
                row += [""] * len(parts)
                continue
            row += [f"{own[part] / found['clips']:.2f}" for part in ("encoder_s", "decoder_s")]
            row += [f"{own['memory_bytes'] / 1e6:.0f}", str(own["same_words_as_pytorch"])]
        table.append(row)
    return _markdown(["format", *(f"{backend}: {part}" for backend in backends for part in parts)], table)


def loops() -> str:
    """Show what the mix of calibration speech and decoding with fallback do to the words of accented speech."""
    rows = json.loads((RESULTS / "loops.json").read_text())["rows"]
    mixes = {"read": "read", "wide": "read, accented, orders", None: "the original"}
    table = []
    for greedy, fallback in zip(rows[::2], rows[1::2], strict=True):
        mix = mixes[greedy.get("mix")] + (", varied" if greedy.get("augmented") else "")
        words = [_rate(one["capped_wer_percent"], len(one["looped"])) for one in (greedy, fallback)]
        table.append([str(greedy.get("bits", 32)), mix, *words, str(fallback["decoded_again"])])
    return _markdown(["bits", "calibration speech", "greedy WER %", "fallback WER %", "decoded again"], table)


def joined() -> str:
    """Show what joining calibration recordings does to short recordings and to windows full of speech."""
    rows = _lines("joined.jsonl")
    table = [
        [
            str(row["bits"]),
            f"{100 * row['joined']:.0f} %",
            str(row["windows"]),
            str(row["processor_s"]),
            *(f"{row['kl'][name]:.3f}" for name in SETS),
            _rate(row["long_windows"]["capped_percent"], len(row["long_windows"]["looped"])),
        ]
        for row in sorted(rows, key=lambda row: (-row["bits"], row["joined"]))
    ]
    head = ["bits", "joined", "windows", "quantizing s", *(f"{name} KL" for name in SETS.values()), "words changed in full windows %"]
    return _markdown(head, table)


def fitted() -> str:
    """Show what a fit makes of a size, beside the other schedules of that size."""
    table = []
    for row in _lines("fit.jsonl"):
        others = [row["uniform"], *(next((one for one in row.get("others", []) if title in one["title"]), None) for title in FIT_OTHERS)]
        table.append(
            [
                row["model"].removeprefix("bundled:"),
                f"{row['max_bytes'] / 1e6:.2f}",
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['measured_kl']:.4f}",
                f"{row['predicted_kl']:.4f}",
                *("-" if one is None else f"{one['measured_kl']:.4f} ({one['bytes'] / 1e6:.2f} MB)" for one in others),
                f"{row['random']['measured_kl']:.4f}",
            ]
        )
    head = ["model", "size asked MB", "file MB", "measured KL", "predicted KL"]
    head += ["one format: KL (size)", "8-bit encoder: KL (size)", "plain sensitivities: KL (size)", "random schedules: KL"]
    return _markdown(head, table)


def layers(file: str) -> str:
    """Show which kinds of layers take the error of a quantized model, as shares of their output energy."""
    figures = ("rounded_error", "added_error", "inherited_error", "outgoing_error")
    table = [
        [row["part"], row["layer"], str(row["count"]), *(f"{100 * row[name]:.2f}" for name in figures), f"{row['strength']:.2f}"]
        for row in json.loads((RESULTS / file).read_text())["rows"]
    ]
    head = ["part", "layers", "count", "rounding adds %", "FADE adds %", "comes in %", "goes out %", "strength"]
    return _markdown(head, table, words=2)


def openvino() -> str:
    """Show seconds, memory and size of the files of sherpa-onnx in ONNX Runtime and in OpenVINO."""
    found = json.loads((RESULTS / "openvino.json").read_text())
    table = [
        [
            system,
            f"{found['encoder']['seconds'][system]:.2f}",
            *(f"{1000 * found[work]['seconds'][system]:.0f}" for work in ("prompt", "token")),
            f"{found['memory_bytes'][system] / 1e6:.0f}",
            f"{size / 1e6:.1f}",
        ]
        for system, size in found["bytes"].items()
    ]
    return _markdown(["runtime", "encoder s", "prompt ms", "token ms", "memory MB", "files MB"], table)


def errors() -> str:
    """Show how the errors of layers add up, by width and method: mean and deviation over draws of calibration speech."""
    draws = defaultdict[tuple[str, int, str], list[dict[str, Any]]](list)
    for row in _lines("error_statistics.jsonl"):
        draws[row["model"].removeprefix("bundled:"), row["bits"], row["method"]].append(row)
    table = []
    for model, bits, method in sorted(draws, key=lambda key: (key[0], -key[1], list(METHODS).index(key[2]))):
        rows = draws[model, bits, method]
        cells = [_mean(rows, name, 4) for name in ("measured_kl", "half_sum", "half_trace")]
        cells += [_mean(rows, "off_diagonal_share", 0, 100), _mean(rows, "half_sum_shuffled", 4)]
        table.append([model, str(bits), METHODS[method], str(len(rows)), *cells])
    head = [
        "model",
        "bits",
        "method",
        "draws",
        "measured KL",
        "half the sum",
        "half the trace",
        "off the diagonal %",
        "half the sum, shuffled",
    ]
    return _markdown(head, table, words=3)


def _mean(rows: Sequence[dict[str, Any]], name: str, digits: int, scale: int = 1) -> str:
    values = [scale * row[name] for row in rows]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def growth() -> str:
    """Show how time and memory of quantizing grow: the exponents."""
    found = json.loads((RESULTS / "growth.json").read_text())["exponents"]
    titles = {"forward_s": "one forward pass", "moments_s": "sums", "solve_s": "solves", "total_s": "all", "peak_mib": "peak memory"}
    return _markdown(
        ["grows with", *titles.values()], [[axis, *(f"{powers[name]:.2f}" for name in titles)] for axis, powers in found.items()]
    )


TABLES: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        methods,
        options,
        runtimes,
        paired,
        parity,
        processor,
        contexts,
        demo,
        demo_difference,
        certificates,
        tuned,
        words,
        formats,
        format_sizes,
        format_speeds,
        loops,
        growth,
        joined,
        fitted,
        layers,
        errors,
        openvino,
    )
}


if __name__ == "__main__":
    main()
