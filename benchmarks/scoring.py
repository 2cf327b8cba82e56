"""Measure how long it takes to score ten thousand utterances against the original, with all intervals.

    python benchmarks/scoring.py --speech DIR [--utterances 10000]

The texts of the three dev sets are repeated; both systems drop one word in ten at random.
"""

import random
import time
from pathlib import Path

from common import RESULTS, SETS, script_parser, write_json

from sottovoce.data.load import load_data
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", required=True)
    parser.add_argument("--utterances", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "scoring.json")
    arguments = parser.parse_args()
    texts = [utterance.text or "" for name in SETS for utterance in load_data(Path(arguments.speech) / name)]
    generator = random.Random(0)  # noqa: S311 - reproducible words, no secret

    def drop_words() -> list[Transcript]:
        found = []
        for i in range(arguments.utterances):
            reference = f"{texts[i % len(texts)]} {i}"  # no two alike, so that nothing is answered from a cache
            words = " ".join(word for word in reference.split() if generator.random() > 0.1)
            found.append(Transcript(id=str(i), text=words, tokens=(), duration_s=1.0, reference=reference))
        return found

    ours, theirs = drop_words(), drop_words()
    started = time.perf_counter()
    score = score_transcripts(ours, theirs)
    seconds = time.perf_counter() - started
    write_json(arguments.out, {"utterances": len(ours), "words": score.words, "seconds": round(seconds, 2)})
    print(f"{len(ours)} utterances, {score.words} words: {seconds:.1f} s")


if __name__ == "__main__":
    main()
