"""The store that a target names; packages of its kind are imported when it is opened."""

from data_tools.publish.folder_store import FolderStore
from data_tools.publish.hub_store import HubStore
from data_tools.publish.object_store import ObjectStore
from data_tools.publish.stores import Store
from olmo_train.errors import ConfigError


def open_store(where: str, private: bool | None = None) -> Store:
    """A folder, hf://owner/name, or a URL that fsspec knows.

    Raises:
        ConfigError: no such kind of place, or its package is not installed.
    """
    if where.startswith("hf://"):
        return HubStore(where, private)
    if private is not None:
        raise ConfigError(f"private={str(private).lower()} is for hubs; for {where} set the rights of the folder or bucket")
    return ObjectStore(where) if "://" in where else FolderStore(where)
