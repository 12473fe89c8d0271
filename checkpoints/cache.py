"""Where this machine keeps what can be had again: `$XDG_CACHE_HOME/olmo_train`, by default `~/.cache/olmo_train`."""

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder of the cache; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "olmo_train", *parts)
