"""The README.md of a quantized folder: a model card for the Hub."""

from huggingface_hub import ModelCardData

from sottovoce.checkpoint.layout import is_compressed_tensors, loads_in_transformers
from sottovoce.models.load import names_hub_model, public_name
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.tune_record import TuneRecord
from sottovoce.system.counting import counted
from sottovoce.system.paths import last_part

FOLDER_IN_CARD = "THIS_FOLDER"  # stands for where the folder lies; an upload puts the name of its repository there
IN_TRANSFORMERS = """```python
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

model = AutoModelForSpeechSeq2Seq.from_pretrained("THIS_FOLDER", dtype=torch.float32)
processor = AutoProcessor.from_pretrained("THIS_FOLDER")
```

Needs `transformers` 5 and `compressed-tensors` 0.18 or later. `sottovoce transcribe THIS_FOLDER speech.wav` works too."""
IN_SOTTOVOCE = """The loader of `transformers` takes one width for all layers and refuses this folder. Load it with `sottovoce`:

```
sottovoce transcribe THIS_FOLDER speech.wav
```"""


def model_card(result: QuantizedModel, tune: TuneRecord | None = None) -> str:
    """Return Markdown with a metadata block that the Hub understands. `tune`: how the result was tuned."""
    plan, source = result.plan, result.model.source
    widths = sorted({number_format.code_bits for number_format in plan.formats})
    on_hub = names_hub_model(source)
    metadata = ModelCardData(
        base_model=source if on_hub else None,
        base_model_relation="quantized" if on_hub else None,
        library_name="transformers" if loads_in_transformers(plan) else "sottovoce",
        pipeline_tag="automatic-speech-recognition",
        tags=["sottovoce", *(["compressed-tensors"] if is_compressed_tensors(plan) else []), *(f"{bits}-bit" for bits in widths)],
    )
    rows = {
        "method": result.recipe.method.title,
        "target": plan.target,
        **{f"format of {counted(count, 'layer')}": title for title, count in _counts(plan).items()},
        "head and token embedding": _head(plan),
        "bits per quantized weight, with scales": f"{plan.bits_per_weight:.2f}",
    }
    strengths = [report.strength for report in result.reports if report.added_error is not None]
    if strengths:
        rows["mean strength of error correction"] = f"{sum(strengths) / len(strengths):.2f}"
    if result.calibration:
        rows["calibration"] = result.calibration.amount
    if tune is not None and tune.chosen:
        rows["tuned"] = (
            f"{tune.numbers / 1e6:.1f} M scales and floating-point numbers, {counted(tune.chosen, 'step')}; "
            "KL to the original on held-out speech "
            f"{tune.start.kl:.4f} before, {tune.best.kl:.4f} after"
        )
    lines = [
        "---",
        metadata.to_yaml(),
        "---",
        "",
        f"# {last_part(source)}, {' and '.join(map(str, widths))} bits",
        "",
        f"Quantized from `{public_name(source)}` by [sottovoce](https://pypi.org/project/sottovoce/).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "## Use",
        "",
        IN_TRANSFORMERS if loads_in_transformers(plan) else IN_SOTTOVOCE,
        "",
        "Plan, recipe, calibration samples, versions, checksums and diagnostics of every layer are in `sottovoce.json`.",
        "",
    ]
    return "\n".join(lines)


def _counts(plan: Plan) -> dict[str, int]:
    return {fmt.title: sum(layer.format == fmt for layer in plan.layers) for fmt in plan.formats}


def _head(plan: Plan) -> str:
    heads = [layer.format.title for layer in plan.layers if layer.part == "head"]
    return heads[0] if heads else "16 bits (not quantized)"
