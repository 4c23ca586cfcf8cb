"""A hub of the Hugging Face kind on the loopback interface: what reading models and data sets asks of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.loopback import Handler, git_oid, serving


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

    class HubHandler(Handler):
        def answer(self, body: bytes) -> None:
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
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            commit, folder = known
            if info:
                names = [{"rfilename": name} for name in _names(folder)]
                self._json({"id": match[1], "sha": commit, "siblings": names})
            elif tree:
                entries = [_entry(folder, name) for name in _names(folder)]
                if self.command == "POST":
                    asked_for = parse_qs(body.decode()).get("paths", [])
                    entries = [entry for entry in entries if entry["path"] in asked_for]
                self._json(entries)
            else:
                self._file(folder, match[3], commit, wanted)

        def _json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send(200, body, {"Content-Type": "application/json"})

        def _file(self, folder: Path, name: str, commit: str, wanted: str | None) -> None:
            if name not in _names(folder):
                self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            body = (folder / name).read_bytes()
            headers = {"ETag": f'"{git_oid(body)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if wanted is None:
                if self.command == "GET" and name in hub.cut_once:
                    hub.cut_once.discard(name)
                    self.send(200, body, headers, cut_at=len(body) // 2)
                    return
                self.send(200, body, headers)
                return
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(body)) + 1, len(body))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
            self.send(206, body[start:end], headers)

    with serving(HubHandler) as hub.endpoint:
        yield hub


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path, name: str) -> dict[str, object]:
    body = (folder / name).read_bytes()
    return {"type": "file", "path": name, "size": len(body), "oid": git_oid(body)}
