"""`olmo explore`: what it prints, where it listens, how it ends, and what it refuses."""

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from checkpoints.explore import command
from checkpoints.explore.command import listen, main, url_of
from checkpoints.explore.config import is_loopback
from olmo_train.errors import ConfigError
from tests.checkpoints.explore.conftest import configure


def test_the_command_says_where_it_listens_and_ends_by_an_interrupt(run: Path, index: Path) -> None:
    words = [sys.executable, "-m", "checkpoints.explore.command", f"run={run}", "port=0", "device=cpu"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line or process.communicate()
        assert line.endswith("/   (Ctrl-C ends it)\n")
        with urllib.request.urlopen(line.split()[0], timeout=60) as response:
            assert b"olmo explore" in response.read()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said) == (0, "")


def test_only_this_machine_is_answered_unless_told(run: Path, index: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[str, int]] = []
    opened: list[str] = []
    monkeypatch.setattr(command, "serve", lambda app, session, listener: served.append(listener.getsockname()))
    monkeypatch.setattr("webbrowser.open", opened.append)
    main([f"run={run}", "port=0", "open_browser=true"])
    out, warned = capsys.readouterr()
    assert served[0][0] == "127.0.0.1"
    assert opened == [out.split()[0]] == [f"http://127.0.0.1:{served[0][1]}/"]
    assert "warning" not in warned
    main([f"run={run}", "port=0", "host=0.0.0.0"])
    out, warned = capsys.readouterr()
    assert served[1][0] == "0.0.0.0"
    assert out.startswith("http://127.0.0.1:")
    assert "warning: host=0.0.0.0 can be reached from other machines" in warned


def test_a_taken_port_is_said(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port={port} of host=127\.0\.0\.1 cannot be listened at: .*; give another port"):
            main([f"run={run}", f"port={port}"])
    with pytest.raises(ConfigError, match=r"host=203\.0\.113\.7 cannot be listened at"):
        listen("203.0.113.7", 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["port=70000"], "port=70000 must be 1 to 65535, or 0 for any free one"),
        (["host=''"], "host='' must be an address of this machine"),
        (["limits.text=0"], "limits.text=0 must be positive"),
        (["limits.models=-1"], "limits.models=-1 must be positive"),
        (["trace.spans.min_tokens=0"], "trace.spans.min_tokens=0 must be at least 1"),
        (["hosts=x"], "hosts"),
        (["log_level=loud"], "log_level"),
        (["run=nowhere"], "run=nowhere is not the folder of a run (it has no config.yaml); e.g. run=runs/first"),
        (["port=-1", "limits.steps=0"], "limits.steps=0 must be positive"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_opened(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        main([f"run={run}", *words])
    assert message in str(raised.value)


def test_a_run_that_saved_nothing_is_refused(tmp_path: Path, run: Path) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(ConfigError, match="has no finished step folder yet"):
        main([f"run={tmp_path}"])


def test_addresses_are_told_as_a_browser_takes_them() -> None:
    assert url_of("0.0.0.0", 1) == "http://127.0.0.1:1/"
    assert url_of("::", 2) == url_of("::1", 2) == "http://[::1]:2/"
    assert url_of("box.local", 3) == "http://box.local:3/"
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "box")] == [
        True, True, True, True, False, False, False, False,
    ]  # fmt: skip


def test_loopback_is_the_default(run: Path) -> None:
    assert configure(run).host == "127.0.0.1"
