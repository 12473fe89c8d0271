"""The pipeline's output and releases of it, made once; a hub and a store of this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from huggingface_hub import constants

from data_tools.publish import command, stores
from tests.data_tools.inspect.pipeline import Made, make
from tests.data_tools.publish.releases import SMALL, WORDS
from tests.hub_server import Hub, serve_hub


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Made:
    return make(tmp_path_factory.mktemp("published"), tokenizer)


@pytest.fixture(scope="module")
def release(made: Made) -> Path:
    """A release in a folder; read only."""
    before = os.getcwd()
    os.chdir(made.folder)
    try:
        command.main([*WORDS, "target=release"])
    finally:
        os.chdir(before)
    return made.folder / "release"


@pytest.fixture(scope="module")
def small(made: Made) -> Path:
    """One of fewer files, for places that take a request for each."""
    before = os.getcwd()
    os.chdir(made.folder)
    try:
        command.main([*SMALL, "target=small"])
    finally:
        os.chdir(before)
    return made.folder / "small"


@pytest.fixture
def here(made: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The working folder of the pipeline."""
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(stores, "FIRST_WAIT_S", 0.01)
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_writertoken0123456789")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf cache"))
        yield hub


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    options = {"key": "test", "secret": "s3secret0123456789", "client_kwargs": {"endpoint_url": moto, "region_name": "us-east-1"}}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    bucket = f"bucket-{abs(hash(str(tmp_path)))}"
    fsspec.filesystem("s3").call_s3("create_bucket", Bucket=bucket)
    return f"s3://{bucket}/some/demo"
