"""URIs as text: what is one, and how to show one without the credentials in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ttsvar_ray.errors import escape_controls

_URI = re.compile(r"((?:[a-zA-Z][a-zA-Z0-9+.-]*::)*[a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.DOTALL)

_PARAMETER = re.compile(r";([^;=/#]*)=[^;/#]*")

_EMBEDDED = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>()]+")
_MISTYPED = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*:/{1,3})[^\s/@:]+:[^\s@]*@")
"""User and password behind a scheme, in whatever else."""

_BETWEEN = re.compile(r"[:/@?&=#;%+\s]")
_SHORT = 2

_PLAIN_NAME = re.compile(r"[A-Za-z][\w.-]{0,40}")
_PLAIN_VALUE = re.compile(r"(https?://)?[\w.:\[\]-]+/?")

_SHOWN_PARAMETERS = frozenset({"endpoint_override", "region", "scheme"})
"""Query parameters without secrets; the value of any other is hidden."""


def is_uri(text: str) -> bool:
    """Whether a path is written as `scheme://...`."""
    return _URI.fullmatch(text) is not None


def scheme_of(uri: str) -> str:
    """Return the scheme in lower case, of a chain (`simplecache::s3:`) the first; the text must be a URI."""
    match = _URI.fullmatch(uri)
    assert match is not None, "not a URI"
    return match.group(1).partition("::")[0].lower()


def split_query(uri: str) -> tuple[str, str]:
    """Return a URI up to its query, and the query with its question mark, or nothing."""
    base, mark, query = uri.partition("?")
    return base.rstrip("/"), mark + query


def without_secrets(text: str) -> str:
    """Return a URI without user, password and unknown query values; any other text as it is.

    Of a chain (`zip://a.csv::s3://...`) each link; also of one that is mistyped: one slash, blanks around it.
    """
    match = _URI.fullmatch(text)
    if match is None:
        return scrubbed(text) if _MISTYPED.search(text) else text
    links = match.group(2).split("::")
    if len(links) > 1:
        return "::".join([_link(f"{match.group(1)}://{links[0]}"), *map(without_secrets, links[1:])])
    return _link(text)


def scrubbed(message: str) -> str:
    """Return a message with every URI in it without its secrets, as those of other libraries quote them."""
    return _MISTYPED.sub(r"\1", _EMBEDDED.sub(lambda match: _link(match.group()), message))


def for_people(text: str) -> str:
    """Return text that other code or other people's files have put together, fit for terminals and logs."""
    return escape_controls(scrubbed(text))


def secret_pieces(uri: str) -> list[str]:
    """Return what of a URI is not to be shown, in pieces as a message about it may quote them."""
    shown = without_secrets(uri)
    return [piece for piece in _BETWEEN.split(uri) if len(piece) > _SHORT and piece not in shown]


def _link(text: str) -> str:
    """Return one URI of a chain without its secrets."""
    match = _URI.fullmatch(text)
    if match is None:
        return text
    rest, mark, fragment = match.group(2).partition("#")
    base, query = split_query(rest)
    if "@" in query and "/" not in base and not _is_host(base):
        # A password with a question mark in it.
        base, query = split_query(rest.rpartition("@")[2])
    authority = base.partition("/")[0]
    # A secret key may hold a slash that should have been written as %2F: it must not be shown either.
    has_user = "@" in authority or ("@" in base and not _is_host(authority))
    if has_user:
        base = base.rpartition("@")[2] if "@" not in authority else base[authority.rindex("@") + 1 :]
    authority, slash, path = base.partition("/")
    host, _, port = authority.partition(":")
    if port and not port.isdecimal() and not authority.startswith("["):
        # No port: a password whose @ was forgotten.
        base = f"{host}:***{slash}{path}"
    is_web = match.group(1).lower() in ("http", "https")
    hidden = "#***" if mark and (is_web or "=" in fragment) else mark + fragment
    base = _PARAMETER.sub(r";\1=***", base)
    return f"{match.group(1)}://{base}{_shown_query(query)}{hidden}"


def redacted(value: Any) -> Any:
    """Return settings with every URI in them without its secrets."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {redacted(key): redacted(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [redacted(item) for item in value]
    return value


def without_folders(value: Any) -> Any:
    """Return settings whose absolute local paths are their last names: folders tell who works where."""
    if isinstance(value, Mapping):
        return {key: item if key == "rewrite" else without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    is_path = isinstance(value, str) and value.startswith(("/", "~", "file:/"))
    return value.rstrip("/").rpartition("/")[2] if is_path else value


def _is_host(authority: str) -> bool:
    host, colon, port = authority.partition(":")
    return bool(host) and (not colon or port.isdecimal())


def _shown_query(query: str) -> str:
    shown = []
    for parameter in query.removeprefix("?").split("&"):
        name, equals, value = parameter.partition("=")
        if not equals:
            continue
        value = value.rpartition("@")[2]
        is_shown = name in _SHOWN_PARAMETERS and _PLAIN_VALUE.fullmatch(value)
        # What is no name may be a secret with the padding of base64.
        name = name if _PLAIN_NAME.fullmatch(name) and value else "***"
        shown.append(f"{name}={value if is_shown else '***'}")
    return f"?{'&'.join(shown)}" if shown else ""
