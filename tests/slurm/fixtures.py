"""Slurm clusters for the tests marked `slurm`: one per session and kind, whole and idle at the beginning of each test.

tests/conftest.py makes them known everywhere.
"""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, find_missing, new_cluster, why_no_namespaces


@pytest.fixture(scope="session")
def flat_cluster() -> Iterator[Cluster]:
    """Four nodes on this machine's own network; use `cluster`."""
    _need_slurm()
    with new_cluster("flat") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def networked_cluster() -> Iterator[Cluster]:
    """Four nodes with a network, a name and a cable each; use `cables`."""
    _need_slurm()
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    with new_cluster("netns") as cluster:
        yield cluster


@pytest.fixture
def cluster(flat_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose commands also work in this process (SLURM_CONF is set)."""
    monkeypatch.setenv("SLURM_CONF", str(flat_cluster.conf))
    yield flat_cluster
    flat_cluster.heal()


@pytest.fixture
def cables(networked_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster whose nodes can be cut off; its commands work through `client` and `command` only."""
    yield networked_cluster
    networked_cluster.heal()


@pytest.fixture
def any_cluster(request: pytest.FixtureRequest) -> Cluster:
    """A cluster with cables where this machine can have one, else without."""
    return request.getfixturevalue("cluster" if why_no_namespaces() else "cables")


def _need_slurm() -> None:
    missing = find_missing()
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}): bash tests/install_slurm.sh")
