"""Find out what a model name means and load it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sottovoce.errors import ModelError, SottovoceError, first_line
from sottovoce.models import bundled, ctranslate2
from sottovoce.models.generic import Generic
from sottovoce.models.moonshine import Moonshine
from sottovoce.models.qwen3_asr import Qwen3ASR
from sottovoce.models.readiness import make_ready, refuse_broken_settings, refuse_giant, refuse_other_tensors, tokenizer_files
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.weight_files import CTRANSLATE2, MANIFEST
from sottovoce.models.whisper import Whisper
from sottovoce.system.json_object import json_object_or_empty
from sottovoce.system.paths import last_part

FAMILIES: dict[str, type[SpeechModel]] = {"moonshine": Moonshine, "qwen3_asr": Qwen3ASR, "whisper": Whisper}

ADAPTER = "adapter_config.json"
HUB_ID = r"[A-Za-z0-9][\w.-]*/\w[\w.-]*"  # OWNER/NAME; `./x`, `~/x` and `a/b/c` are paths
TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")  # a folder with none of them has no words
QuantizedLoader = Callable[[Path], tuple[Any, Any]]


def load_model(source: str | Path, *, quantized_loader: QuantizedLoader | None = None) -> SpeechModel:
    """Load the recognizer called `source`, in float32 on the CPU, in evaluation mode.

    `source`: `bundled:NAME`, a folder (transformers, faster-whisper, or one of ours, read by `quantized_loader`), or a
    Hub id. Raises `ModelError` if there is no such model, it is of another architecture, or it holds NaN or infinite weights.
    """
    name = str(source)
    folder = Path(name).expanduser()
    place = folder if folder.is_dir() else None
    if (folder / ADAPTER).is_file():
        raise ModelError(_merge_first(name, folder / ADAPTER))
    if name.startswith(bundled.PREFIX) and (recovered := bundled.RECOVERED.get(name.removeprefix(bundled.PREFIX))):
        network, processor = _from_transformers(recovered())
    elif name.startswith(bundled.PREFIX):
        network, processor = ctranslate2.load_folder(*bundled.locate(name.removeprefix(bundled.PREFIX)))
    elif quantized_loader is not None and (quantized := _quantized_folder(name, folder)) is not None:
        network, processor = quantized_loader(quantized)
        place = quantized
    elif (folder / CTRANSLATE2).is_file():
        network, processor = ctranslate2.load_folder(folder)
    elif folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{name}: the folder has no config.json; a transformers or faster-whisper model folder is wanted")
    elif folder.exists() and not folder.is_dir():
        raise ModelError(f"{name}: is a file, and a model is a folder; give its folder, a Hub id (OWNER/NAME) or bundled:tiny.en")
    elif not folder.exists() and not names_hub_model(name):
        raise ModelError(f"{name!r}: no such file or folder; give a folder, a Hub id (OWNER/NAME) or bundled:tiny.en")
    else:
        network, processor = _from_transformers(folder if folder.is_dir() else name)
    _check_weights(network, name)
    family = FAMILIES.get(network.config.model_type, Generic)
    model = family(network.eval().requires_grad_(False), processor, name)
    model.folder = place
    return make_ready(model)


def names_hub_model(name: str) -> bool:
    """Whether a name stands for a model on the Hub: OWNER/NAME, and there is no such path here."""
    return re.fullmatch(HUB_ID, name) is not None and not Path(name).exists()


def public_name(name: str) -> str:
    """Return what a model is called in what is published: the last part of its path; one of the Hub or a bundled one as it is named."""
    return name if names_hub_model(name) or name.startswith(bundled.PREFIX) else last_part(name)


def local_folder(source: str | Path) -> Path:
    """Return where a quantized folder lies: `source`, or, of a quantized repository on the Hub, what is fetched of it into the cache.

    A `Path` is always local, and only OWNER/NAME as text may be on the Hub. A name that is neither comes back as a path. Raises
    `ModelError` if the repository cannot be fetched whole.
    """
    folder = Path(source).expanduser()
    return folder if isinstance(source, Path) else _quantized_folder(source, folder) or folder


def _quantized_folder(name: str, folder: Path) -> Path | None:
    """Return the folder of ours that `name` means, fetched if it is on the Hub; None if it is no folder of ours."""
    if (folder / MANIFEST).is_file():
        return folder
    if folder.exists() or not re.fullmatch(HUB_ID, name):
        return None
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        hf_hub_download(name, MANIFEST)
    except Exception:  # noqa: BLE001 - it has none, or the Hub is not reached: what loads the model then says so
        return None
    try:
        return Path(snapshot_download(name))
    except Exception as exc:  # what the clients of the Hub raise has no common root
        raise ModelError(f"{name}: cannot be fetched ({first_line(exc)}); try again when the Hub can be reached") from exc


def _from_transformers(source: Path | str) -> tuple[Any, Any]:
    """Load by `transformers`, from a folder or the Hub; foreign errors become a `ModelError`."""
    from transformers import AutoConfig, AutoModelForSpeechSeq2Seq
    from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES as RECOGNIZERS

    try:
        config = AutoConfig.from_pretrained(source)
        model_type = config.model_type
        if model_type not in RECOGNIZERS:
            raise ModelError(
                f"{source}: a {model_type!r} model is not an encoder-decoder speech recognizer that transformers knows; "
                f"best known here: {', '.join(FAMILIES)}"
            )
        refuse_giant(str(source), config)
        if isinstance(source, Path):
            refuse_broken_settings(source)
        network, loading = AutoModelForSpeechSeq2Seq.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        refuse_other_tensors(str(source), loading["missing_keys"], loading["unexpected_keys"])
        return network, _processor(source)
    except SottovoceError:
        raise
    except json.JSONDecodeError as exc:
        raise ModelError(f"{source}: its config.json is not JSON ({exc})") from exc
    except Exception as exc:  # noqa: BLE001 - transformers and the Hub raise many kinds; all mean the model is not to be had
        if (adapter := _adapter_on_hub(source)) is not None:
            raise ModelError(_merge_first(str(source), adapter)) from exc
        raise ModelError(f"{source}: cannot be loaded ({first_line(exc)}); give a Hub id, a local folder or bundled:tiny.en") from exc


def _processor(source: Path | str) -> Any:
    """Load the processor. Raises `ModelError` that names the tokenizer files if a folder has none."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(source)
    except Exception as exc:
        if isinstance(source, Path) and not any((source / name).is_file() for name in TOKENIZERS):
            raise ModelError(f"{source}: has no tokenizer; {tokenizer_files(str(source))}") from exc
        raise


def _merge_first(name: str, adapter: Path) -> str:
    """Say that `name` is an adapter, and how to make a model of it: one sentence and two lines of Python."""
    base, merged = str(json_object_or_empty(adapter).get("base_model_name_or_path") or "BASE"), f"{Path(name).name}-merged"
    return (
        f"{name}: holds an adapter ({ADAPTER}), not a whole model; merge it first with these two lines of Python (package peft), and "
        f"give the folder {merged}, or remove {ADAPTER} if the weights are merged already:\n"
        "  import peft, transformers as t; peft.PeftModel.from_pretrained(t.AutoModelForSpeechSeq2Seq.from_pretrained("
        f"{base!r}), {name!r}).merge_and_unload().save_pretrained({merged!r})\n"
        f"  t.AutoProcessor.from_pretrained({base!r}).save_pretrained({merged!r})"
    )


def _adapter_on_hub(source: Path | str) -> Path | None:
    """Return the description of the adapter that a Hub id names, or None: it names none, or the Hub is not reached."""
    if isinstance(source, Path):
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, ADAPTER))
    except Exception:  # noqa: BLE001 - whatever the reason, the first error is the one to tell
        return None


def _check_weights(network: Any, name: str) -> None:
    if not any(bool(parameter.any()) for parameter in network.parameters() if parameter.dim() > 1):
        raise ModelError(f"{name}: all of its weights are zero; fetch the model again")
    for parameter_name, parameter in network.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"{name}: the weight {parameter_name!r} holds NaN or infinite values; fetch the model again")
