"""Sentences for a small recogniser of spoken commands: a grammar of some three hundred words, and their synthetic speech.

    sentence -> a command of one of the templates below, its slots filled with names, numbers, dates, places and things

A sentence belongs to one split for ever, by a hash of its text, so what is tested was never taught.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from sottovoce.demo.speech import Line, write_speech

Split = Literal["train", "calibration", "test"]

# fmt: off
NAMES = (
    "adam alice anna arthur carla daniel elena felix george hannah irene jacob julia karim laura leo maria martin nadia nina "
    "oliver oscar paul peter rosa sarah simon sofia thomas victor"
).split()
PLACES = (
    "athens berlin boston cairo chicago dublin geneva helsinki lisbon london madrid moscow munich naples oslo paris prague "
    "rome seattle sydney tokyo toronto vienna warsaw zurich"
).split()
ROOMS = "bathroom bedroom cellar garage garden hallway kitchen library office".split() + ["dining room", "living room"]
DEVICES = "fan heater lamp oven printer radio speaker television".split() + ["coffee machine", "front door", "washing machine"]
THINGS = (
    "apples bananas bread butter carrots cheese coffee eggs flour honey lemons milk onions oranges pasta pepper potatoes "
    "rice salt soup sugar tea tomatoes"
).split()
COLOURS = "blue green orange purple red white yellow".split()
MUSIC = "classical country dance folk jazz piano rock".split()
MONTHS = "january february march april may june july august september october november december".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
ONES = "one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = ("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
            "sixteenth seventeenth eighteenth nineteenth twentieth").split()
TASKS = ["call the doctor", "clean the windows", "feed the cat", "pay the rent", "pick up the parcel", "walk the dog",
         "water the plants", "write the report", "book the tickets", "charge the phone"]
EVENTS = "appointment breakfast dinner exam flight interview lesson lunch meeting party".split()
TEMPLATES = [
    "set a timer for {count} minutes", "set a timer for {count} seconds", "wake me up at {clock}", "set an alarm for {clock} on {day}",
    "turn on the {device} in the {room}", "turn off the {device} in the {room}", "switch the {room} lights to {colour}",
    "dim the lights in the {room} to {count} percent", "set the temperature in the {room} to {count} degrees",
    "call {name}", "call {name} and {name}", "send a message to {name}", "tell {name} that i will be {count} minutes late",
    "remind me to {task} at {clock}", "remind me to {task} on {day}", "remind {name} to {task} before {clock}",
    "what is the weather in {place}", "will it rain in {place} on {day}", "how cold is it in {place} tonight",
    "book a flight from {place} to {place}", "how far is it from {place} to {place}", "find a train to {place} on {date}",
    "play some {music} music", "play {music} music in the {room}", "turn the volume up to {count}", "skip this song", "pause the music",
    "add {thing} to the shopping list", "add {thing} and {thing} to my list", "we need {thing} {thing} and {thing}",
    "remove {thing} from the shopping list", "how much is {number} plus {number}", "how much is {number} minus {number}",
    "what is {number} times {count}", "divide {number} by {count}", "the number is {digits}", "my code is {digits}",
    "the {event} with {name} is on {date}", "move the {event} to {day} at {clock}", "cancel my {event} on {date}",
    "is the {event} on {day} or {day}", "when is the {event} with {name}", "{name} lives in {place}", "{name} was born on {date}",
    "it costs {number} dollars", "the bill was {number} dollars and {count} cents", "order {count} boxes of {thing}",
    "good morning", "good night {name}", "thank you", "stop", "yes please", "no thank you", "what time is it in {place}",
    "open the {device}", "is the {device} in the {room} still on", "read my last message from {name}", "who is calling",
]
# fmt: on


def _count(rng: random.Random) -> str:
    return _below_hundred(rng.randint(2, 99))


def _below_hundred(value: int) -> str:
    if value < 10:
        return ONES[value - 1]
    if value < 20:
        return TEENS[value - 10]
    return TENS[value // 10 - 2] + (f" {ONES[value % 10 - 1]}" if value % 10 else "")


def _number(rng: random.Random) -> str:
    hundreds, rest = rng.randint(1, 9), rng.randint(0, 99)
    return f"{ONES[hundreds - 1]} hundred" + (f" and {_below_hundred(rest)}" if rest else "")


def _clock(rng: random.Random) -> str:
    hour = _below_hundred(rng.randint(1, 12))
    return rng.choice((hour, f"half past {hour}", f"quarter to {hour}", f"{hour} {_below_hundred(rng.randrange(15, 60, 5))}"))


def _date(rng: random.Random) -> str:
    day = rng.randint(1, 29)
    ordinal = ORDINALS[day - 1] if day <= len(ORDINALS) else f"twenty {ORDINALS[day - 21]}"
    return f"the {ordinal} of {rng.choice(MONTHS)}"


SLOTS: dict[str, Callable[[random.Random], str]] = {
    "count": _count,
    "number": _number,
    "clock": _clock,
    "date": _date,
    "digits": lambda rng: " ".join(rng.choice(["zero", *ONES]) for _ in range(4)),
    "name": lambda rng: rng.choice(NAMES),
    "place": lambda rng: rng.choice(PLACES),
    "room": lambda rng: rng.choice(ROOMS),
    "device": lambda rng: rng.choice(DEVICES),
    "thing": lambda rng: rng.choice(THINGS),
    "colour": lambda rng: rng.choice(COLOURS),
    "music": lambda rng: rng.choice(MUSIC),
    "day": lambda rng: rng.choice(DAYS),
    "task": lambda rng: rng.choice(TASKS),
    "event": lambda rng: rng.choice(EVENTS),
}


def split_of(sentence: str) -> Split:
    """Where a sentence belongs, for ever: one in eight to "test", one in eight to "calibration", the rest to "train".

    Templates without a slot are always taught, or their words would never be.
    """
    if sentence in TEMPLATES:
        return "train"
    place = hashlib.sha256(sentence.encode()).digest()[0] % 8
    return "test" if place == 0 else "calibration" if place == 1 else "train"


def command_sentences(split: Split, count: int, seed: int = 0) -> list[str]:
    """`count` different sentences of `split`, in lower case without punctuation."""
    rng, found = random.Random(seed), dict[str, None]()  # noqa: S311 - reproducible sentences, no secret
    for sentence in _sentences(rng):
        if split_of(sentence) == split:
            found[sentence] = None
        if len(found) == count:
            return list(found)
    raise AssertionError("the grammar never ends")


def _sentences(rng: random.Random) -> Iterator[str]:
    while True:
        text = rng.choice(TEMPLATES)
        while "{" in text:
            before, _, rest = text.partition("{")
            slot, _, after = rest.partition("}")
            text = f"{before}{SLOTS[slot](rng)}{after}"
        yield text


def spoken(sentence: str) -> str:
    """As it is handed to the voice, which wants a capital and a stop."""
    return sentence[0].upper() + sentence[1:] + "."


def make_commands(folder: Path | str, split: Literal["calibration", "test"], count: int, seed: int = 0) -> Path:
    """Speak `count` sentences of `split` into `folder` and return the manifest's path; see `write_speech`.

    Three out of four carry noise, in both splits; texts stand in the manifest for "test" alone.
    """
    lines = [Line(text, spoken(text)) for text in command_sentences(split, count, seed)]
    return write_speech(folder, split, lines, noisy=True, texts=split == "test")
