"""Each kind of target."""

from pathlib import Path

import pytest

from tests.stores import hub, moto, s3

__all__ = ["hub", "moto", "s3"]


@pytest.fixture(params=["folder", "s3", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of target."""
    if request.param == "folder":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return str(tmp_path / "releases" / "first")
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    request.getfixturevalue("hub")
    return "hub:owner/first"
