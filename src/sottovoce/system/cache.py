"""Where things are kept that can be made again."""

import os
from pathlib import Path

VARIABLE = "SOTTOVOCE_CACHE"


def cache_folder() -> Path:
    """Return `$SOTTOVOCE_CACHE`, else `sottovoce` in `$XDG_CACHE_HOME`, else `~/.cache/sottovoce`; it need not exist yet."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "sottovoce"
