"""A Hub on this machine: the few calls that an upload and a download make, over HTTP, with large files by LFS.

It keeps what arrives, counts it, and refuses what it is told to refuse.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, TOKEN = "me", "hf_" + "x" * 34
LARGE = 2000  # bytes from which a file goes by LFS here


@dataclass
class Repository:
    """A repository: its files, and whether it is private."""

    private: bool = True
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((sorted(self.files.items()), self.commits)).encode()).hexdigest()  # noqa: S324 - as git names commits


@dataclass
class FakeHub:
    """What the server knows. `refuse`: asked before each call, with method and path; a number is the answer's status."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)  # by type and name, "models/me/x"
    blobs: dict[str, bytes] = field(default_factory=dict)  # by sha256
    calls: list[tuple[str, str]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)  # bytes of every large file that arrived
    refuse: Callable[[str, str], int | None] = lambda _method, _path: None


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Run a Hub until the block ends."""
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def git_oid(content: bytes) -> str:
    """Name a file as git does."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _answer(self, status: int, content: Any = None, headers: Mapping[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        hub, path = self.state, unquote(urlsplit(self.path).path)
        hub.calls.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if (status := hub.refuse(self.command, path)) is not None:
            self._answer(status, {"error": "refused"})
        elif path.startswith("/blobs/"):
            hub.blobs[hashlib.sha256(body).hexdigest()] = body
            hub.sent.append(len(body))
            self._answer(200, {})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        else:
            status, content, *headers = self._call(path.strip("/"), body)
            self._answer(status, content, *headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _call(self, path: str, body: bytes) -> Any:
        hub, parts = self.state, path.split("/")
        if path == "api/whoami-v2":
            return 200, {"name": OWNER, "type": "user", "auth": {}}
        if path == "api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or OWNER}/{asked['name']}"
            if not name.startswith(f"{OWNER}/"):
                return 403, {"error": "You don't have the rights to create a model under this namespace"}
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            hub.repositories.setdefault(f"models/{name}", Repository(private=private))
            return 200, {"url": f"{hub.endpoint}/{name}", "id": "1", "name": name}
        if parts[0] == "api":
            return self._repository_call("/".join(parts[1:4]), parts[4:], body)
        if path.endswith("info/lfs/objects/batch"):
            objects = [self._lfs(item) for item in json.loads(body)["objects"]]
            return 200, {"objects": objects, "transfer": "basic"}
        if "/resolve/" in path:
            return self._file(*path.split("/resolve/", 1))
        return 404, {"error": "not found"}

    def _file(self, name: str, place: str) -> Any:
        repository, file = self.state.repositories.get(f"models/{name}"), place.split("/", 1)[1]
        if repository is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if file not in repository.files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.sha}
        content = repository.files[file]
        return 200, content, {"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": repository.sha}

    def _lfs(self, item: dict[str, Any]) -> dict[str, Any]:
        known = item["oid"] in self.state.blobs
        actions = {} if known else {"actions": {"upload": {"href": f"{self.state.endpoint}/blobs/{item['oid']}"}}}
        return {"oid": item["oid"], "size": item["size"], **actions}

    def _repository_call(self, name: str, rest: list[str], body: bytes) -> Any:
        repository = self.state.repositories.get(name)
        if repository is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": file} for file in repository.files]
            return 200, {"id": name.split("/", 1)[1], "private": repository.private, "sha": repository.sha, "siblings": siblings}
        if rest[0] == "tree":
            return 200, [{"type": "file", "path": file, "size": len(c), "oid": git_oid(c)} for file, c in repository.files.items()]
        if rest[0] == "preupload":
            return 200, {"files": [self._mode(repository, file) for file in json.loads(body)["files"]]}
        if rest[0] == "commit":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository.files[value["path"]] = self.state.blobs[value["oid"]]
                else:
                    repository.commits.append(value["summary"])
            return 200, {
                "success": True,
                "commitOid": repository.sha,
                "commitUrl": f"{self.state.endpoint}/{name.split('/', 1)[1]}/commit/{repository.sha}",
            }
        return 404, {"error": "not found"}

    def _mode(self, repository: Repository, file: dict[str, Any]) -> dict[str, Any]:
        mode, known = ("lfs" if file["size"] >= LARGE else "regular"), repository.files.get(file["path"])
        oid = None if known is None else hashlib.sha256(known).hexdigest() if mode == "lfs" else git_oid(known)
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
