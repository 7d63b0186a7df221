"""A stand-in of the hub on 127.0.0.1: the endpoints that creating a repository and uploading a folder call.

It keeps what arrives, byte by byte, and fails when it is told to.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


@dataclass
class FakeHub:
    """What the hub holds and was asked.

    Attributes:
        token: The one that it knows.
        may_write: Whether that one may.
        takes_card: Whether the metadata of a card please it.
        large: Files of these names go by LFS, in parts of the protocol of their own.
        failures: Path's part -> status, and how many times.
    """

    token: str
    may_write: bool = True
    takes_card: bool = True
    large: frozenset[str] = frozenset()
    failures: dict[str, tuple[int, int]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    branches: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    uploaded_bytes: int = 0
    url: str = ""

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.branches.get((repo, branch), {})

    def fails(self, path: str) -> int | None:
        for part, (status, times) in self.failures.items():
            if part in path and times > 0:
                self.failures[part] = (status, times - 1)
                return status
        return None

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if (method, path) == ("POST", "/api/repos/create"):
            return self._create(json.loads(body))
        if path == "/api/whoami-v2":
            return 200, {"name": "someone", "type": "user", "auth": {"accessToken": {"role": "write"}}}
        if path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            bad = [] if self.takes_card and isinstance(head, dict) else [{"message": "told to refuse this card"}]
            return (400 if bad else 200), {"errors": bad, "warnings": []}
        if parts[-3:] == ["lfs", "objects", "batch"]:
            return 200, {"transfer": "basic", "objects": [self._slot(o) for o in json.loads(body)["objects"]]}
        if parts[0] == "lfs-put":
            self.objects[parts[1]] = body
            self.uploaded_bytes += len(body)
            return 200, {}
        if parts[0] == "lfs-verify":
            return 200, {}
        repo = "/".join(parts[2:4])
        if repo not in self.private:
            return 404, {"error": "Repository not found"}
        if len(parts) == 4 or parts[4] == "revision":
            return 200, {"id": repo, "private": self.private[repo], "sha": "a" * 40, "tags": [], "siblings": []}
        if parts[4] == "branch":
            self.branches.setdefault((repo, parts[5]), {})
            return 200, {}
        if parts[4] == "preupload":
            files = self.files(repo, parts[5])
            return 200, {"files": [self._mode(f, files) for f in json.loads(body)["files"]]}
        assert parts[4] == "commit", path
        return 200, self._commit(repo, parts[5], body)

    def _create(self, asked: Any) -> tuple[int, Any]:
        repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if not self.may_write:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        known = repo in self.private
        self.private.setdefault(repo, asked.get("visibility") == "private" or bool(asked.get("private")))
        return (409 if known else 200), {"url": f"{self.url}/{repo}", "name": repo, "id": repo}

    def _mode(self, file: Any, known: dict[str, bytes]) -> dict[str, Any]:
        name = file["path"]
        mode = "lfs" if name in self.large else "regular"
        content = known.get(name)
        blob = None if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if content is not None and mode == "lfs":
            blob = hashlib.sha256(content).hexdigest()
        return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": blob}

    def _slot(self, item: Any) -> dict[str, Any]:
        oid, size = item["oid"], item["size"]
        if oid in self.objects:
            return {"oid": oid, "size": size}
        upload = {"href": f"{self.url}/lfs-put/{oid}", "header": {}}
        verify = {"href": f"{self.url}/lfs-verify/{oid}", "header": {}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def _commit(self, repo: str, branch: str, body: bytes) -> dict[str, Any]:
        files = self.branches.setdefault((repo, branch), {})
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        return {"commitUrl": f"{self.url}/{repo}/commit/{'b' * 40}", "commitOid": "b" * 40}


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append((self.command, path))
            is_open = path.startswith(("/lfs-put", "/lfs-verify"))
            if not is_open and self.headers.get("Authorization") != f"Bearer {hub.token}":
                status, content = 401, {"error": "Invalid credentials"}
            elif (failure := hub.fails(path)) is not None:
                status, content = failure, {"error": "told to fail"}
            else:
                status, content = hub.answer(self.command, path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = _reply

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
