"""One is not several."""

from sottovoce.system.counting import counted


def test_one_and_several() -> None:
    assert [counted(n, "utterance") for n in (0, 1, 2)] == ["0 utterances", "1 utterance", "2 utterances"]
