"""A hub of the Hugging Face kind on the loopback interface: what reading models and data sets asks of it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class FakeHub:
    """Repositories, each a folder at one commit.

    Attributes:
        repositories: "owner/name", or "datasets/owner/name" -> (commit, folder).
        cut_once: names of files whose first download breaks in the middle.
        requests: method, path and Range of each request so far.
    """

    repositories: dict[str, tuple[str, Path]]
    cut_once: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def downloads(self) -> list[str]:
        """Return the names of the files that were sent, in order."""
        return [
            path.split("/", 5)[-1]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Answer on a free port of the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_POST(self) -> None:
            given = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._answer(with_body=True, asked_for=given.get("paths", []))

        def _answer(self, *, with_body: bool, asked_for: list[str] | None = None) -> None:
            path = unquote(urlsplit(self.path).path).replace("/api/models/", "/api/")
            wanted = self.headers.get("Range")
            hub.requests.append((self.command, path, wanted))
            name = "((?:datasets/)?[^/]+/[^/]+)"
            info = re.fullmatch(rf"/api/{name}(?:/revision/([^/]+))?", path)
            tree = re.fullmatch(rf"/api/{name}/(?:tree|paths-info)/([^/]+).*", path)
            file = re.fullmatch(rf"/{name}/resolve/([^/]+)/(.+)", path)
            match = info or tree or file
            known = hub.repositories.get(match[1]) if match else None
            if match is None or known is None or match[2] not in (None, "main", known[0]):
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
                return
            commit, folder = known
            if info:
                names = [{"rfilename": name} for name in _names(folder)]
                self._json({"id": match[1], "sha": commit, "siblings": names}, with_body)
            elif tree:
                entries = [_entry(folder, name) for name in _names(folder)]
                if asked_for is not None:
                    entries = [entry for entry in entries if entry["path"] in asked_for]
                self._json(entries, with_body)
            else:
                self._file(folder, match[3], commit, wanted, with_body)

        def _json(self, value: object, with_body: bool) -> None:
            body = json.dumps(value).encode()
            self._send(200, body, {"Content-Type": "application/json"}, with_body)

        def _file(self, folder: Path, name: str, commit: str, wanted: str | None, with_body: bool) -> None:
            if name not in _names(folder):
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
                return
            body = (folder / name).read_bytes()
            headers = {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if wanted is None:
                if with_body and name in hub.cut_once:
                    hub.cut_once.discard(name)
                    self._send(200, body, headers, with_body, cut_at=len(body) // 2)
                    return
                self._send(200, body, headers, with_body)
                return
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(body)) + 1, len(body))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
            self._send(206, body[start:end], headers, with_body)

        def _send(
            self,
            status: int,
            body: bytes,
            headers: dict[str, str],
            with_body: bool,
            cut_at: int | None = None,
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body[:cut_at])
            if cut_at is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join(timeout=30)
        server.server_close()


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


def _entry(folder: Path, name: str) -> dict[str, object]:
    body = (folder / name).read_bytes()
    return {"type": "file", "path": name, "size": len(body), "oid": _oid(body)}
