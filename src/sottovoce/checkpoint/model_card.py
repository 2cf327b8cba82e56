"""The README.md of a quantized folder: a model card for the Hub."""

from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.recipe import Recipe


def model_card(result: QuantizedModel) -> str:
    """Markdown with a metadata block that the Hub understands."""
    recipe, grid = result.recipe, result.recipe.grid
    weights = sum(report.weights for report in result.reports)
    bits = sum(report.weights * report.bits_per_weight for report in result.reports) / weights
    uniform = len({(report.bits, report.group_size) for report in result.reports}) == 1
    strengths = [report.strength for report in result.reports if report.added_error is not None]
    lines = [
        "---",
        f"base_model: {result.model.source}"
        if "/" in result.model.source and ":" not in result.model.source
        else "library_name: transformers",
        "pipeline_tag: automatic-speech-recognition",
        "tags:",
        "- sottovoce",
        "- compressed-tensors",
        f"- {grid.bits}-bit",
        "---",
        "",
        f"# {result.model.source.rstrip('/').split('/')[-1]}, {grid.bits} bits",
        "",
        f"Quantized from `{result.model.source}` by [sottovoce](https://pypi.org/project/sottovoce/).",
        "",
        "| | |",
        "|---|---|",
        f"| method | {recipe.method.title} |",
        f"| grid | {grid.bits} bits, groups of {grid.group_size or 'a whole row'}, {'symmetric' if grid.symmetric else 'asymmetric'} |",
        f"| head and token embedding | {_head(recipe)} |",
        f"| bits per quantized weight, scales included | {bits:.2f} |",
        f"| layers quantized | {len(result.reports)} |",
    ]
    if strengths:
        lines.append(f"| mean strength of error correction | {sum(strengths) / len(strengths):.2f} |")
    if result.calibration:
        utterances = result.calibration["utterances"]
        lines.append(f"| calibration | {len(utterances)} utterances, {result.calibration['seconds']:.0f} s |")
    lines += ["", "## Use", ""]
    if uniform:
        lines += [
            "```python",
            "import torch",
            "from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor",
            "",
            'model = AutoModelForSpeechSeq2Seq.from_pretrained("THIS_FOLDER", dtype=torch.float32)',
            'processor = AutoProcessor.from_pretrained("THIS_FOLDER")',
            "```",
            "",
            "Needs `transformers` 5 and `compressed-tensors` 0.18 or later. `sottovoce transcribe THIS_FOLDER speech.wav` works too.",
        ]
    else:
        lines += [
            "This folder mixes widths, which the loader of `transformers` refuses; load it with `sottovoce`:",
            "",
            "```",
            "sottovoce transcribe THIS_FOLDER speech.wav",
            "```",
        ]
    lines += [
        "",
        "Recipe, calibration draw, versions, checksums and diagnostics of every layer are in `sottovoce.json`.",
        "",
    ]
    return "\n".join(lines)


def _head(recipe: Recipe) -> str:
    return "16 bits (not quantized)" if recipe.head_bits == 16 else f"{recipe.head_bits or recipe.grid.bits} bits"
