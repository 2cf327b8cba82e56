"""What tuning did, in sentences: for the terminal and for the report."""

from sottovoce.quantization.tune_record import TuneRecord


def sentences(record: TuneRecord) -> list[str]:
    """Say in sentences what tuning did."""
    if record.chosen:
        done = f"{record.numbers:,} scales and floating-point numbers tuned, codes kept; the look after step {record.chosen} is kept"
    else:
        done = "no look was better than the start, so the start is kept: the folder computes what it did before"
    said = [
        f"{done}; KL to {record.original} in nats per token, on {record.tokens} tokens of {len(record.held_out)} held-out utterances; "
        f"rates {record.rate:.2g} (scales), {record.float_rate:.2g} (the rest)"
    ]
    varied = ", varied: clips cut and joined, a little noise" if record.speech.augmentation else ""
    said.append(f"trained on {record.speech.amount}{varied}")
    if record.calibrated_on:
        said.append(
            f"{record.calibrated_on} held-out utterances are of speakers on whom the codes were calibrated, which flatters the start"
        )
    if record.chosen:
        said.append("moved most: " + ", ".join(f"{one.name.removeprefix('model.')} {one.change:.2%}" for one in record.moved[:3]))
    if record.chosen and (record.best.seen_log_ratio or 0.0) > 0:
        said.append(
            f"it has drifted: of the original's transcripts of speech that it was trained on, it is surer than the original itself, by "
            f"{record.best.seen_log_ratio:.4f} nats per token; more speech, or fewer steps, would keep it nearer"
        )
    if record.best.loops:
        said.append(f"loops where the original does not: {', '.join(record.best.loops)}")
    return said
