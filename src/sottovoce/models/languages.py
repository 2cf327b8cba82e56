"""Names of languages that mean something special."""

DEFAULT_LANGUAGE = "en"  # the code of the language where none is named
DETECT = "auto"  # the language that stands for: find out
