"""Releases of made-up content, places to publish them to, and processes that do so at once or die on the way."""

import hashlib
import os
import pickle
import random
import select
import signal
import socket
import socketserver
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec.asyn

from checkpoints.publish.claims import Timing
from checkpoints.publish.command import open_target
from checkpoints.publish.retry import Patience
from checkpoints.publish.staging import Staged, check_staged
from checkpoints.publish.stores import Store
from checkpoints.publish.targets import Manner, Target
from checkpoints.release import MANIFEST, Release, read_release, revision_name, weights_digest

QUICK = Patience(attempts=5, first_wait_s=0.01, max_wait_s=0.3)
TIMING = Timing(beat_s=0.1, expiry_s=3.0)


def staged(
    folder: Path, step: int = 1, content: int = 0, texts: int = 0, size: int = 30_000, has_optimizer: bool = False
) -> Staged:
    """A release of several files; `content` changes the weights, `texts` only what is around them."""
    rng = random.Random(f"{step} {content}")
    files = {f"model-{n:05d}-of-00003.safetensors": rng.randbytes(size + n) for n in (1, 2, 3)}
    files |= {
        "config.json": b'{"step": %d}' % step,
        "README.md": b"---\nlicense: mit\n---\ntext %d\n" % texts,
        "plots/loss.png": rng.randbytes(99),
    }
    files |= {"training/state.json": b"{}", "training/data/demo/manifest.json": b"{}\n"}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    entries = {path: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in sorted(files.items())}
    tensors = {
        name: {"dtype": "F32", "shape": [1], "file": name, "sha256": entry["sha256"]}
        for name, entry in entries.items()
        if "model" in name
    }
    release = Release(
        name=revision_name(1, step, step * 10**9), run="first", stage=1, step=step, tokens=step * 10**9, loss=2.5,
        architecture="OlmoeForCausalLM", dtype="float32", is_exact=True, parameters={"total": 1, "active": 1},
        weights_sha256=weights_digest(tensors), parent=None, code=None, data={}, evaluations=[], has_optimizer=has_optimizer,
        files=entries, tensors=tensors,
    )  # fmt: skip
    (folder / MANIFEST).write_bytes(release.to_bytes())
    return check_staged(folder, release)


def target_at(where: str, said: Callable[[str], None] = lambda text: None, **manner: Any) -> Target:
    """A target that loses no time with waiting."""
    values: dict[str, Any] = {"workers": 2, "patience": QUICK, "timeout_s": 5.0, "claims": TIMING, "said": said} | manner
    return open_target(where, Manner(**values))


def put(where: str, release: Staged, replace: bool = False) -> bool:
    """Publish one release."""
    target = target_at(where)
    target.prepare(None, False)
    return target.put(release, replace, lambda size: None)


def dies_after(where: str, release: Staged, frac: float) -> None:
    """Publish, and be killed when this part of the bytes is there; in a child."""
    sizes = []

    def moved(size: int) -> None:
        sizes.append(size)
        if sum(sizes) >= frac * release.bytes:
            os.kill(os.getpid(), signal.SIGKILL)

    target = target_at(where, workers=1)
    target.prepare(None, False)
    target.put(release, False, moved)


def at_once(tmp_path: Path, *calls: Callable[[], Any]) -> list[Any]:
    """The results of calls made by one child process each; an exception of one is its result, a signal that killed it too."""
    children = []
    for n, call in enumerate(calls):
        result = tmp_path / f"result-{n}-{random.randrange(10**9)}"
        pid = os.fork()
        if pid == 0:
            fsspec.asyn.reset_lock()  # as fsspec asks of children
            try:
                value: Any = call()
            except BaseException as error:
                traceback.print_exc()
                value = error
            try:
                result.write_bytes(pickle.dumps(value))
            finally:
                os._exit(0)
        children.append((pid, result))
    results = []
    for pid, path in children:
        status = os.waitpid(pid, 0)[1]
        results.append(signal.Signals(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else pickle.loads(path.read_bytes()))
    return results


@contextmanager
def breaking(address: str, n: int) -> Iterator[str]:
    """The address of a relay to a server that resets the first n connections."""
    host, port = address.removeprefix("http://").split(":")
    left = [n]

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            left[0] -= 1
            if left[0] >= 0:
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            with socket.create_connection((host, int(port))) as server:
                ends = {self.request: server, server: self.request}
                while True:
                    for end in select.select(list(ends), [], [])[0]:
                        data = end.recv(65536)
                        if not data:
                            return
                        ends[end].sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Relay) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def contents(store: Store, revision: str) -> dict[str, str]:
    """SHA-256 by path of everything in a revision."""
    found = {}
    for path in store.files(revision):
        with store.open(revision, path) as file:
            found[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def is_whole(store: Store, revision: str) -> Release:
    """Assert that a revision is exactly what its manifest says, by its bytes; the manifest."""
    release = read_release(store.read(revision, MANIFEST), store.where)
    there = contents(store, revision)
    for path in (MANIFEST, "release.json.sig", "checkpoints.json", ".gitattributes"):
        there.pop(path, None)
    assert there == {path: entry["sha256"] for path, entry in release.files.items()}
    return release
