"""No credential of a URI is ever shown."""

from __future__ import annotations

import pytest

from ttsvar_ray.storage.uris import is_uri, redacted, scrubbed, without_secrets


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        ("s3://AKIA:topsecret@bucket/run", "s3://bucket/run"),
        ("s3://AKIA:top/secret@bucket/run", "s3://bucket/run"),
        ("s3://AKIA:top@secret@bucket/run", "s3://bucket/run"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        (
            "s3://bucket/x?endpoint_override=h:1&scheme=http",
            "s3://bucket/x?endpoint_override=h:1&scheme=http",
        ),
        ("s3://bucket/x?endpoint_override=u:topsecret@h:1", "s3://bucket/x?endpoint_override=h:1"),
        ("s3://bucket/x?token=topsecret", "s3://bucket/x?token=***"),
        ("sftp://me:topsecret@host:22/x", "sftp://host:22/x"),
        ("sftp://user:top?secret@h/x", "sftp://h/x"),
        ("https://h/x.csv#access_token=topsecret", "https://h/x.csv#***"),
        ("https://h/x.csv;token=topsecret;v=1", "https://h/x.csv;token=***;v=***"),
        ("https://h/x.csv?X-Amz-Signature=deadbeef01", "https://h/x.csv?X-Amz-Signature=***"),
        ("simplecache::s3://AKIA:topsecret@bucket/x", "simplecache::s3://bucket/x"),
        ("s3://bucket/a#b;c", "s3://bucket/a#b;c"),
        ("out/x", "out/x"),
        ("/data/a@b?c=d", "/data/a@b?c=d"),
    ],
)
def test_what_is_shown_of_a_uri(given: str, shown: str) -> None:
    assert without_secrets(given) == shown
    assert redacted({"a": {"b": [given, 1, None]}}) == {"a": {"b": [shown, 1, None]}}


def test_what_a_uri_is() -> None:
    assert is_uri("s3://b") and is_uri("file:///x") and is_uri("abfss+x://c")
    assert is_uri("simplecache::s3://b")
    assert not is_uri("a/b") and not is_uri("C:/x") and not is_uri("://x")


@pytest.mark.parametrize(
    "given",
    [
        "zip://inner/a.csv::s3://AKIA:topsecret@bucket/x.zip",
        "simplecache::zip://a.csv::s3://AKIA:topsecret@bucket/x.zip",
        "s3://bucket/x::https://h/y?sig=topsecret",
        " s3://AKIA:topsecret@bucket/x",
        "s3:/AKIA:topsecret@bucket/x",
        "s3://bucket/x?scheme=http;token=topsecret",
        "s3://bucket/x?endpoint_override=h:1/?k=topsecret&region=a",
        "s3://bucket/x?topsecret=",
        "s3://bucket/x?topsecret+/9==",
        "https://h/x#topsecret",
        "https://u:topsecret/x",
        "HTTPS://U:topsecret@h/x",
    ],
)
def test_ways_around_show_nothing_either(given: str) -> None:
    assert "topsecret" not in without_secrets(given)
    assert "topsecret" not in str(redacted({given: [given]}))
    assert "topsecret" not in scrubbed(f"cannot open '{given}', sorry")


def test_messages_of_others_lose_the_secrets_in_their_uris_alone() -> None:
    message = "403, message='Forbidden', url='https://h/x.csv?X-Amz-Signature=abc&a=1' for C:/x and a@b.c: no"
    assert scrubbed(message) == (
        "403, message='Forbidden', url='https://h/x.csv?X-Amz-Signature=***&a=***' for C:/x and a@b.c: no"
    )
    assert scrubbed("s3://bucket: it fails") == "s3://bucket: it fails"
    assert without_secrets("http://[::1]:80/x") == "http://[::1]:80/x"
    plain = "s3://bucket/run: the storage failed (a: b)"
    assert scrubbed(plain) == plain
