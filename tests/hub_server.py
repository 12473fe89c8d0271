"""A hub on 127.0.0.1 for tests: the protocol of huggingface.co as far as huggingface_hub and transformers use it.

Repositories with branches and commits in memory, LFS by basic and multipart transfer, tokens, and faults: requests answered with
an error, cut after so many bytes, answered late, stored bytes flipped. Xet is not offered: set HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"
LFS = (".safetensors", ".png", ".bin", ".gguf")
PAGE = 5
"""Entries of a page of a tree or of commits."""
MULTIPART = 100_000
"""Bytes from which an upload goes by parts."""
PART = 40_000
WRITER = "hf_writertoken0123456789"
READER = "hf_readertoken0123456789"
"""Tokens of users who may write, and may not."""


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    data: bytes
    lfs: str | None
    """SHA-256 by which the storage knows it; None: in git itself."""

    @property
    def blob_id(self) -> str:
        text = self.data
        if self.lfs is not None:
            text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.lfs}\nsize {len(self.data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    files: dict[str, Entry]


@dataclass
class Repo:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    history: list[tuple[str, dict[str, Entry]]] = field(default_factory=list)
    """Every state that a branch ever showed, in order: (branch, files)."""

    def commit(self, branch: str, parent: str | None, title: str, files: dict[str, Entry]) -> str:
        oid = hashlib.sha1(secrets.token_bytes(20)).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, files)
        self.point(branch, oid)
        return oid

    def point(self, branch: str, oid: str) -> None:
        self.branches[branch] = oid
        self.history.append((branch, self.commits[oid].files))

    def files(self, revision: str) -> dict[str, bytes]:
        """Content by path."""
        return {path: entry.data for path, entry in self.commits[self.branches.get(revision, revision)].files.items()}


@dataclass
class Fault:
    """What happens to the n-th .. (n + times - 1)-th requests whose `METHOD path` matches."""

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Bytes of the body, of an upload read or of a download sent, after which the connection is reset."""
    delay_s: float = 0.0
    lose_answer: bool = False
    """Do what was asked, and reset the connection instead of answering."""
    before: Callable[[], None] | None = None
    """Called before the request is looked at."""
    nth: int = 1
    times: int = 1
    seen: int = 0

    def hits(self, what: str) -> bool:
        if not re.search(self.pattern, what):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Hub:
    """State of the hub; `endpoint` is its address."""

    def __init__(self) -> None:
        self.tokens = {WRITER: "write", READER: "read"}
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        """LFS objects by SHA-256."""
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.ignored: set[str] = set()
        """Paths that a .gitignore of the repository would name."""
        self.requests: list[str] = []
        """`METHOD path` of every request."""
        self.uploaded = 0
        """Bytes received as LFS objects, whole or not."""
        self.lock = threading.RLock()
        self.endpoint = ""

    def count(self, pattern: str) -> int:
        return sum(re.search(pattern, request) is not None for request in self.requests)

    def create(self, name: str, private: bool = False) -> Repo:
        with self.lock:
            repo = self.repos[name] = Repo(private)
            repo.commit("main", None, "initial commit", {".gitattributes": Entry(ATTRIBUTES, None)})
            return repo

    def put(self, name: str, branch: str, path: str, data: bytes) -> None:
        """Change a file behind everyone's back."""
        with self.lock:
            repo = self.repos[name]
            head = repo.commits[repo.branches[branch]]
            entry = Entry(data, hashlib.sha256(data).hexdigest() if path.endswith(LFS) else None)
            repo.commit(branch, head.oid, "by hand", {**head.files, path: entry})

    def flip(self, name: str, branch: str, path: str) -> None:
        """Flip a bit of a stored file; the hub does not notice, and tells the old SHA-256."""
        with self.lock:
            repo = self.repos[name]
            commit = repo.commits[repo.branches[branch]]
            entry = commit.files[path]
            damaged = bytearray(entry.data)
            damaged[len(damaged) // 2] ^= 1
            commit.files[path] = Entry(bytes(damaged), entry.lfs)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: Hub

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self.answer()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    # ---- the frame ----------------------------------------------------------------------------------------------------

    def answer(self) -> None:
        split = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        what = f"{self.command} {unquote(split.path)}"
        with self.state.lock:
            self.state.requests.append(what)
            self.fault = next((fault for fault in self.state.faults if fault.hits(what)), None)
        try:
            if self.fault is not None:
                if self.fault.before is not None:
                    self.fault.before()
                time.sleep(self.fault.delay_s)
            body = self.body()
            if self.fault is not None and self.fault.status is not None:
                self.reply(self.fault.status, b"injected", self.fault.headers)
                return
            try:
                for method, pattern, handler in ROUTES:
                    match = re.fullmatch(pattern, split.path)
                    if match and self.command in method.split():
                        handler(self, body, *(unquote(group) for group in match.groups()))
                        return
                raise RefusedError(404, f"no such page: {what}")
            except RefusedError as refused:
                headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
                self.reply(refused.status, json.dumps({"error": refused.message}).encode(), headers)
        except (ConnectionError, TimeoutError):
            self.reset()

    def body(self) -> bytes:
        cut = self.fault.cut_after if self.fault is not None and self.command == "PUT" else None
        is_upload = self.command == "PUT"
        data = bytearray()
        for piece in self.pieces():
            data += piece
            if is_upload:
                self.state.uploaded += len(piece)
            if cut is not None and len(data) >= cut:
                raise ConnectionResetError("injected")
        return bytes(data)

    def pieces(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(left, 4096))
            if not piece:
                raise ConnectionResetError("the client left")
            left -= len(piece)
            yield piece

    def reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.wfile = open("/dev/null", "wb")  # noqa: SIM115 - the frame flushes it

    def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        if self.fault is not None and self.fault.lose_answer:
            raise ConnectionResetError("injected")
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault.cut_after if self.fault is not None and self.command == "GET" else None
        if cut is not None and cut < len(data):
            self.wfile.write(data[:cut])
            self.wfile.flush()
            time.sleep(0.05)  # let it arrive before the reset
            raise ConnectionResetError("injected")
        self.wfile.write(data)

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def paged(self, rows: list[Any]) -> None:
        """The page that `cursor` asks for, and a link to the next."""
        start = int(self.query.get("cursor", 0))
        headers = {}
        if start + PAGE < len(rows):
            path = urlsplit(self.path)
            rest = "&".join(word for word in path.query.split("&") if word and not word.startswith("cursor="))
            url = f"{self.state.endpoint}{path.path}?{rest}&cursor={start + PAGE}"
            headers["Link"] = f'<{url}>; rel="next"'
        self.json(rows[start : start + PAGE], headers=headers)

    # ---- who may what -------------------------------------------------------------------------------------------------

    def rights(self) -> str | None:
        text = self.headers.get("Authorization")
        if text is None:
            return None
        rights = self.state.tokens.get(text.removeprefix("Bearer "))
        if rights is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return rights

    def repo(self, name: str, write: bool = False) -> Repo:
        rights, repo = self.rights(), self.state.repos.get(name)
        if repo is None or (repo.private and rights is None):
            raise RefusedError(404 if rights else 401, "Repository not found", "RepoNotFound")
        if write and rights != "write":
            raise RefusedError(403, "You don't have the required permissions")
        return repo

    def at(self, repo: Repo, revision: str) -> Commit:
        oid = repo.branches.get(revision, revision)
        if oid not in repo.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo.commits[oid]

    # ---- pages --------------------------------------------------------------------------------------------------------

    def whoami(self, body: bytes) -> None:
        if self.rights() is None:
            raise RefusedError(401, "Invalid username or password.")
        self.json({"type": "user", "name": "owner", "orgs": []})

    def create_repo(self, body: bytes) -> None:
        values = json.loads(body)
        name = f"{values.get('organization') or 'owner'}/{values['name']}"
        if self.rights() != "write":
            raise RefusedError(403, "You don't have the rights to create a model under this namespace")
        with self.state.lock:
            if name in self.state.repos:
                self.json({"error": "You already created this model repo", "url": name}, 409)
                return
            self.state.create(name, values.get("visibility") == "private" or bool(values.get("private")))
        self.json({"url": f"{self.state.endpoint}/{name}", "name": name, "id": name})

    def validate_yaml(self, body: bytes) -> None:
        self.json({"errors": [], "warnings": []})

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        repo = self.repo(name)
        commit = self.at(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        values = {"id": name, "modelId": name, "sha": commit.oid, "private": repo.private, "siblings": siblings, "tags": []}
        self.json({**values, "downloads": 0, "likes": 0, "gated": False})

    def refs(self, body: bytes, name: str) -> None:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": oid}
            for branch, oid in list(self.repo(name).branches.items())
        ]
        self.json({"branches": branches, "tags": [], "converts": []})

    def commits(self, body: bytes, name: str, revision: str) -> None:
        repo = self.repo(name)
        at: Commit | None = self.at(repo, revision)
        rows = []
        while at is not None:
            rows.append(
                {
                    "id": at.oid,
                    "title": at.title,
                    "message": "",
                    "date": "2025-01-01T00:00:00.000Z",
                    "authors": [{"user": "owner"}],
                }
            )
            at = repo.commits[at.parent] if at.parent else None
        self.paged(rows)

    def create_branch(self, body: bytes, name: str, branch: str) -> None:
        repo = self.repo(name, write=True)
        with self.state.lock:
            if branch in repo.branches:
                raise RefusedError(409, f"Reference already exists: refs/heads/{branch}")
            start = json.loads(body or b"{}").get("startingPoint", "main")
            repo.point(branch, self.at(repo, start).oid)
        self.json({}, 201)

    def delete_branch(self, body: bytes, name: str, branch: str) -> None:
        repo = self.repo(name, write=True)
        with self.state.lock:
            if branch not in repo.branches or branch == "main":
                raise RefusedError(404 if branch != "main" else 403, f"Invalid rev id: {branch}", "RevisionNotFound")
            del repo.branches[branch]
        self.json({})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        commit = self.at(self.repo(name, write=True), revision)
        rows = []
        for file in json.loads(body)["files"]:
            entry = commit.files.get(file["path"])
            mode = "lfs" if file["path"].endswith(LFS) or file["size"] > 10_000_000 else "regular"
            oid = None if entry is None else entry.lfs or entry.blob_id
            rows.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": file["path"] in self.state.ignored, "oid": oid}
            )
        self.json({"files": rows})

    def lfs_batch(self, body: bytes, name: str) -> None:
        self.repo(name, write=True)
        rows = []
        for wanted in json.loads(body)["objects"]:
            row: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.state.storage:
                row["actions"] = self.upload_actions(wanted["oid"], wanted["size"])
            rows.append(row)
        self.json({"transfer": "multipart", "objects": rows})

    def upload_actions(self, oid: str, size: int) -> dict[str, Any]:
        base, signed = f"{self.state.endpoint}/lfs", "X-Amz-Signature=signedsecret"
        verify = {"href": f"{base}/verify", "header": {}}
        if size < MULTIPART:
            return {"upload": {"href": f"{base}/put/{oid}?{signed}", "header": {}}, "verify": verify}
        parts = -(-size // PART)
        header = {str(n + 1): f"{base}/part/{oid}/{n + 1}?{signed}" for n in range(parts)}
        upload = {"href": f"{base}/complete/{oid}?{signed}", "header": {"chunk_size": str(PART), **header}}
        return {"upload": upload, "verify": verify}

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, "XAmzContentSHA256Mismatch")
        self.state.storage[oid] = body
        self.reply(200, b"", {"ETag": f'"{oid[:8]}"'})

    def lfs_part(self, body: bytes, oid: str, number: str) -> None:
        self.state.parts[oid, int(number)] = body
        self.reply(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def lfs_complete(self, body: bytes, oid: str) -> None:
        data = b"".join(self.state.parts[oid, part["partNumber"]] for part in json.loads(body)["parts"])
        if hashlib.sha256(data).hexdigest() != oid:
            raise RefusedError(400, "the parts are not the object")
        self.state.storage[oid] = data
        self.json({})

    def lfs_verify(self, body: bytes) -> None:
        values = json.loads(body)
        if len(self.state.storage.get(values["oid"], b"")) != values["size"]:
            raise RefusedError(404, "no such object")
        self.json({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repo = self.repo(name, write=True)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        with self.state.lock:
            if revision not in repo.branches:
                raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            head = repo.branches[revision]
            if header.get("parentCommit") not in (None, head):
                raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[head].files)
            for line in lines[1:]:
                self.apply(files, line["key"], line["value"])
            oid = repo.commit(revision, head, header["summary"], files)
        self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.state.endpoint}/{name}/commit/{oid}"})

    def apply(self, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        match key:
            case "file":
                files[path] = Entry(base64.b64decode(value["content"]), None)
            case "lfsFile":
                if value["oid"] not in self.state.storage:
                    raise RefusedError(400, f"LFS pointer to an object that is not there: {path}")
                files[path] = Entry(self.state.storage[value["oid"]], value["oid"])
            case "deletedFile":
                if path not in files:
                    raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[path]
            case _:
                raise RefusedError(400, f"unknown operation {key}")

    def tree(self, body: bytes, name: str, revision: str, folder: str = "") -> None:
        commit = self.at(self.repo(name), revision)
        inside = {path: entry for path, entry in commit.files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not inside:
            raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
        folders = {path.rsplit("/", n)[0] for path in inside for n in range(1, path.count("/") + 1)}
        rows: list[Any] = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        rows += [described(path, entry) for path, entry in sorted(inside.items())]
        if self.query.get("recursive", "").lower() != "true":
            depth = folder.count("/") + 1 if folder else 0
            rows = [row for row in rows if row["path"].count("/") == depth]
        self.paged(rows)

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        commit = self.at(self.repo(name), revision)
        paths = parse_qs(body.decode()).get("paths", [])
        self.json([described(path, commit.files[path]) for path in paths if path in commit.files])

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        commit = self.at(self.repo(name), revision)
        entry = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if entry is None:
            self.reply(404, b"", {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        if entry.lfs is None:
            self.send_file(entry.data, {**headers, "ETag": f'"{entry.blob_id}"'})
            return
        key = secrets.token_hex(8)
        self.state.storage[key] = entry.data
        linked = {"X-Linked-Etag": f'"{entry.lfs}"', "X-Linked-Size": str(len(entry.data))}
        host = self.state.endpoint.replace("127.0.0.1", "localhost")  # another host: clients must not send it their token
        self.reply(
            302,
            b"",
            {
                **headers,
                **linked,
                "Location": f"{host}/cdn/{key}/{entry.lfs}?X-Amz-Signature=signedsecret",
                "ETag": f'"{entry.lfs}"',
            },
        )

    def cdn(self, body: bytes, key: str, sha256: str) -> None:
        if self.headers.get("Authorization") is not None:
            raise RefusedError(400, "a token was sent to another host")
        self.send_file(self.state.storage[key], {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def send_file(self, data: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if_range = self.headers.get("If-Range")
        if match and if_range in (None, headers["ETag"]):
            start, stop = int(match[1]), int(match[2] or len(data) - 1)
            total = {"Content-Range": f"bytes {start}-{stop}/{len(data)}"}
            self.reply(206, data[start : stop + 1], {**headers, **total})
            return
        self.reply(200, data, headers)


def described(path: str, entry: Entry) -> dict[str, Any]:
    """An entry of a tree."""
    lfs = {"lfs": {"oid": entry.lfs, "size": len(entry.data), "pointerSize": 130}} if entry.lfs is not None else {}
    return {"type": "file", "path": path, "oid": entry.blob_id, "size": len(entry.data), **lfs}


_REPO = r"([\w.-]+/[\w.-]+)"
_KIND = "(?:models|datasets)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", rf"/api/{_KIND}/{_REPO}", _Handler.info),
    ("GET", rf"/api/{_KIND}/{_REPO}/revision/([^/]+)", _Handler.info),
    ("GET", rf"/api/{_KIND}/{_REPO}/refs", _Handler.refs),
    ("GET", rf"/api/{_KIND}/{_REPO}/commits/([^/]+)", _Handler.commits),
    ("POST", rf"/api/{_KIND}/{_REPO}/branch/([^/]+)", _Handler.create_branch),
    ("DELETE", rf"/api/{_KIND}/{_REPO}/branch/([^/]+)", _Handler.delete_branch),
    ("POST", rf"/api/{_KIND}/{_REPO}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/(?:datasets/)?{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/put/(\w+)", _Handler.lfs_put),
    ("PUT", r"/lfs/part/(\w+)/(\d+)", _Handler.lfs_part),
    ("POST", r"/lfs/complete/(\w+)", _Handler.lfs_complete),
    ("POST", r"/lfs/verify", _Handler.lfs_verify),
    ("POST", rf"/api/{_KIND}/{_REPO}/commit/([^/]+)", _Handler.commit),
    ("GET", rf"/api/{_KIND}/{_REPO}/tree/([^/]+)", _Handler.tree),
    ("GET", rf"/api/{_KIND}/{_REPO}/tree/([^/]+)/(.+)", _Handler.tree),
    ("POST", rf"/api/{_KIND}/{_REPO}/paths-info/([^/]+)", _Handler.paths_info),
    ("GET HEAD", rf"/(?:datasets/)?{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET", r"/cdn/(\w+)/(\w+)", _Handler.cdn),
]
