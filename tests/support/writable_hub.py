"""A hub of the Hugging Face kind on the loopback interface: what pushing a data set asks of it.

Files named .parquet or .png go to large file storage, by their sha256; others come with the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from tests.support.loopback import Handler, git_oid, serving

TOKEN = "hf_nobody_may_see_this"  # noqa: S105 - of a hub that ends with its test
_LARGE = (".parquet", ".png")
_LICENCES = {"unknown", "cc-by-4.0"}


@dataclass
class Repository:
    """A data set.

    Attributes:
        is_private: as it was made.
        files: content of each file by path.
        commits: their messages.
    """

    is_private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class WritableHub:
    """All data sets, and what is in large file storage.

    Attributes:
        stored: content by sha256.
        uploads: sha256 of every upload that came whole, in order; twice where it came twice.
        requests: method and path of each.
        breaks_after: uploads that are taken before the hub answers nothing but 403, as one whose token has
            run out in the middle does; None never.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    breaks_after: int | None = None
    endpoint: str = ""


@contextmanager
def serve(hub: WritableHub) -> Iterator[WritableHub]:
    """Answer on a free port of the loopback interface."""

    class HubHandler(Handler):
        def answer(self, body: bytes) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            if hub.breaks_after is not None and len(hub.uploads) >= hub.breaks_after:
                self._json(403, {"error": "no more"})
                return
            if path.startswith("/lfs/"):
                self._store(path.removeprefix("/lfs/"), body)
                return
            if path == "/api/validate-yaml":
                # Asked without a token, by whoever wants to know.
                errors = _complaints(json.loads(body)["content"])
                self._json(400 if errors else 200, {"errors": errors, "warnings": []})
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._json(401, {"error": "Invalid credentials"})
                return
            if path == "/api/repos/create":
                self._create(json.loads(body))
                return
            match = re.fullmatch(
                r"/(?:api/)?datasets/([^/]+/[^/.]+)(?:\.git)?(?:/([^/]+)(?:/([^/]+))?(?:/(.*))?)?", path
            )
            found = hub.repositories.get(match[1]) if match else None
            if match is None or found is None:
                self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return
            self._dataset(match[1], found, match[2] or "", match[4] or "", body)

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked['organization']}/{asked['name']}"
            assert asked["type"] == "dataset"
            is_new = name not in hub.repositories
            if is_new:
                hub.repositories[name] = Repository(is_private=asked.get("visibility") == "private")
            url = f"{hub.endpoint}/datasets/{name}"
            self._json(200 if is_new else 409, {"url": url, "name": name, "error": "You already created it"})

        def _dataset(self, name: str, found: Repository, what: str, rest: str, body: bytes) -> None:
            if what == "tree":
                self._json(200, [_entry(path, content) for path, content in sorted(found.files.items())])
            elif what == "preupload":
                self._json(200, {"files": [_mode(found, one["path"]) for one in json.loads(body)["files"]]})
            elif what == "info":
                self._json(200, {"objects": [self._action(one) for one in json.loads(body)["objects"]]})
            elif what == "commit":
                self._commit(name, found, [json.loads(line) for line in body.splitlines()])
            elif what == "resolve":
                content = found.files[rest]
                headers = {"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": "c" * 40}
                self.send(200, content, headers)
            else:
                known = {"id": name, "private": found.is_private, "sha": "c" * 40, "siblings": []}
                self._json(200, known)

        def _action(self, one: dict[str, Any]) -> dict[str, Any]:
            if one["oid"] in hub.stored:
                return one
            return {**one, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{one['oid']}"}}}

        def _store(self, oid: str, body: bytes) -> None:
            assert hashlib.sha256(body).hexdigest() == oid
            hub.stored[oid] = body
            hub.uploads.append(oid)
            self._json(200, {})

        def _commit(self, name: str, found: Repository, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    found.commits.append(value["summary"])
                elif line["key"] == "file":
                    found.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    found.files[value["path"]] = hub.stored[value["oid"]]
                else:
                    assert line["key"] == "deletedFile", line["key"]
                    del found.files[value["path"]]
            commit = f"{hub.endpoint}/datasets/{name}/commit/{'c' * 40}"
            self._json(200, {"commitUrl": commit, "commitOid": "c" * 40, "success": True})

        def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(value).encode()
            self.send(status, body, {"Content-Type": "application/json", **(headers or {})})

    with serving(HubHandler) as hub.endpoint:
        yield hub


def _complaints(card: str) -> list[str]:
    """Return what a hub finds wrong with the head of a card."""
    if not card.startswith("---"):
        return []
    head = yaml.safe_load(card.split("---")[1])
    if not isinstance(head, dict):
        return ["the head must be a mapping"]
    licence = head.get("license", "unknown")
    return [] if licence in _LICENCES else [f'"license" must be one of {sorted(_LICENCES)}, not {licence}']


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if path.endswith(_LARGE):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        entry["oid"] = "0" * 40
    return entry


def _mode(found: Repository, path: str) -> dict[str, Any]:
    content = found.files.get(path)
    oid = None
    if content is not None:
        oid = hashlib.sha256(content).hexdigest() if path.endswith(_LARGE) else git_oid(content)
    mode = "lfs" if path.endswith(_LARGE) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}
