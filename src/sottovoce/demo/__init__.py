"""Speech for trying things out: sentences of this project's own, spoken by a small synthetic voice, offline."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

from sottovoce.demo.speech import write_speech

Split = Literal["calibration", "test"]


def sentences(split: Split) -> list[str]:
    """The 24 sentences to calibrate on, or the 32 others to test on."""
    return files("sottovoce.demo").joinpath(f"{split}.txt").read_text(encoding="utf-8").splitlines()


def make_speech(folder: Path | str, split: Split) -> Path:
    """Speak the sentences of `split` into `folder` (unless they are there already) and return the manifest's path.

    Test sentences carry noise at 10, 5 and 0 dB below the speech, three out of four; those to calibrate on come without text, as
    in real use: the model transcribes them itself. Raises `MissingDependencyError` without `hibari-tts`.
    """
    return write_speech(folder, split, sentences(split), noisy=split == "test", with_texts=split == "test")
