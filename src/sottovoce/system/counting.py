"""Numbers of things in sentences."""


def counted(number: int, noun: str) -> str:
    """Return "1 utterance", "2 utterances": a number of what `noun` names in the singular; its plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
