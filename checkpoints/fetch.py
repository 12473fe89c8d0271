"""Bring a release from a hub or a store to this machine."""

import re
from pathlib import Path

from olmo_train.errors import ConfigError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def looks_remote(where: str) -> bool:
    """Whether a name that is no path here can be a hub repository or a URL."""
    return "://" in where or HUB_NAME.fullmatch(where) is not None


def fetch(where: str) -> Path:
    """The folder of a hub revision (in Hugging Face's own cache) or of a URL.

    Raises:
        ConfigError: the package is missing, or there is no such repository, revision or file.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        raise ConfigError(f"{where}: the package huggingface_hub is not installed; pip install 'olmo-train[publish]'") from None
    name, _, revision = where.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None))
    except (RepositoryNotFoundError, RevisionNotFoundError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise ConfigError(f"{where}: not found on the hub: {error}; is a folder meant? it does not exist") from error
