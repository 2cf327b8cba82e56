"""Names of languages that mean something special."""

DETECT = "auto"  # the language that stands for: find out
