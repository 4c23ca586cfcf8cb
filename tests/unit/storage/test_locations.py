"""Files of every storage are read, listed and replaced alike; nothing torn is ever under its final name."""

from __future__ import annotations

import dataclasses
import errno
import time
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs
import pytest

from tests.support.s3_server import S3Server
from ttsvar_ray.errors import StorageError
from ttsvar_ray.storage import location
from ttsvar_ray.storage.location import Location, locate, storage_environment


@pytest.fixture(params=["path", "file", "memory", "fsspec", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        return locate(f"s3://{server.new_bucket()}/some/folder/")
    return locate(
        {
            "path": str(tmp_path / "folder"),
            "file": f"file://{tmp_path}/folder",
            "memory": f"memory:/{tmp_path}/folder",
            "fsspec": f"local://{tmp_path}/folder",
        }[request.param]
    )


def test_files_are_written_whole_listed_read_and_deleted(folder: Location) -> None:
    assert folder.names() == []
    assert not folder.is_folder()
    folder.make_folder()
    file = folder / "sub" / "a.txt"
    assert file.size() is None
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    file.write_text("eins\nzwei ü")
    assert (file.name, file.suffix) == ("a.txt", ".txt")
    assert file.read_text() == "eins\nzwei ü"
    with file.open() as stream:
        assert [stream.readline(), stream.readline()] == [b"eins\n", "zwei ü".encode()]
    with file.open_arrow() as stream:
        stream.seek(5)
        assert stream.read(4) == b"zwei"
    assert file.size() == 12
    assert folder.is_folder() and not file.is_folder() and file.is_file()
    file.write_text("neu")
    (folder / "sub" / "b").write_text("")
    assert (folder / "sub").names() == ["a.txt", "b"]
    assert locate(file.uri).read_text() == "neu"
    file.delete()
    file.delete()
    assert (folder / "sub").names() == ["b"]


def test_an_error_while_writing_leaves_what_was_there(folder: Location) -> None:
    file = folder / "part"

    def write_half() -> None:
        with file.replacing() as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert folder.names() == []
    file.write_text("whole")
    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert file.read_text() == "whole"
    assert folder.names() == ["part"]


def test_leftovers_of_a_killed_process_go_and_nothing_else(folder: Location) -> None:
    for name in (".part.1234.tmp", "part", ".lock"):
        (folder / name).write_text("x")
    folder.remove_leftovers()
    assert folder.names() == [".lock", "part"]


def test_a_file_is_created_once(folder: Location) -> None:
    file = folder / "run.json"
    assert file.create_text("first")
    assert not file.create_text("second")
    assert file.read_text() == "first"
    assert folder.names() == ["run.json"]


def test_a_file_system_without_hard_links_creates_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(temporary: Path, final: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(location, "_link", refuse)
    file = locate(tmp_path / "run.json")
    assert file.create_text("first") and not file.create_text("second")
    assert (file.read_text(), locate(tmp_path).names()) == ("first", ["run.json"])


@pytest.mark.parametrize("moves", [0, 1])
def test_a_store_that_does_not_rename_over_a_file_keeps_it_until_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    file = locate(f"local://{tmp_path}/letters")
    file.write_text("before")
    move, left = location._move, moves

    def killed(source: Location, target: Location) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        assert not target.is_file()
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(location, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            file.write_text("after")
    locate(f"local://{tmp_path}").remove_leftovers()
    assert (file.read_text(), locate(tmp_path).names()) == ("before", ["letters"])
    file.write_text("after")
    assert (file.read_text(), locate(tmp_path).names()) == ("after", ["letters"])


def test_a_listing_is_as_new_as_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = locate(f"memory:/{tmp_path}/folder")
    forgotten: list[str] = []
    monkeypatch.setattr(type(folder.fsspec), "invalidate_cache", lambda self, *_: forgotten.append("all"))
    folder.names()
    assert forgotten == ["all"]
    (folder / "part").size()
    assert forgotten == ["all", "all"]


def test_a_failed_upload_is_told_and_leaves_nothing(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.new_bucket()
    place = locate(f"s3://{bucket}/part")
    place.write_text("before")
    client = s3.client()
    whole_filesystem = place.filesystem

    class Interrupted:
        """Ends the upload behind the stream's back before it is closed."""

        def __init__(self, stream: Any) -> None:
            self.write, self._stream = stream.write, stream

        def close(self) -> None:
            (upload,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
            name = {"Bucket": bucket, "Key": "part", "UploadId": upload["UploadId"]}
            deadline = time.monotonic() + 20
            while len(client.list_parts(**name).get("Parts", ())) < 2:
                assert time.monotonic() < deadline, "the pieces did not arrive"
            client.abort_multipart_upload(**name)
            self._stream.close()

    class Filesystem:
        def __getattr__(self, name: str) -> Any:
            return getattr(whole_filesystem, name)

        def open_output_stream(self, path: str) -> Any:
            return Interrupted(whole_filesystem.open_output_stream(path))

    interrupted = dataclasses.replace(place, filesystem=Filesystem())
    with pytest.raises(StorageError, match="part: the storage refused or failed"):
        interrupted.write_text("x" * (20 << 20))  # Two pieces.
    assert place.read_text() == "before"


def test_a_torn_object_of_a_failed_copy_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = locate(f"memory:/{tmp_path}/part")

    def copy_half(source: str, target: str) -> None:
        with place.fsspec.open(target, "wb") as stream:
            stream.write(Path(source).read_bytes()[:3])
        raise OSError("connection reset")

    monkeypatch.setattr(place.fsspec, "put_file", copy_half)
    with pytest.raises(StorageError, match=r"part: the storage refused or failed \(connection reset\)"):
        place.write_text("whole")
    assert place.size() is None


def test_a_failed_copy_leaves_the_object_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = locate(f"memory:/{tmp_path}/part")
    place.write_text("before")

    def copy_nothing(source: str, target: str) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(place.fsspec, "put_file", copy_nothing)
    with pytest.raises(StorageError, match="connection refused"):
        place.write_text("whole")
    assert place.read_text() == "before"


def test_whatever_the_client_of_a_store_raises_is_told_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ConnectError(Exception):
        """As HTTP clients have them: no OSError."""

    place = locate(f"memory:/{tmp_path}/p.csv")

    def fail(path: str, **options: Any) -> None:
        raise ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(place.fsspec, "info", fail)
    with pytest.raises(StorageError, match=r"p\.csv: the storage refused or failed \(.*Name or service"):
        place.is_folder()


def test_an_upload_is_not_there_before_its_end(s3: S3Server) -> None:
    """Large parts travel in pieces; a process that is killed between two leaves nothing."""
    bucket = s3.new_bucket()
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://{bucket}")
    stream = filesystem.open_output_stream(f"{bucket}/part")
    stream.write(b"x" * (12 << 20))
    assert s3.keys(bucket) == []
    stream.close()
    assert s3.keys(bucket) == ["part"]


def test_credentials_in_a_uri_work_and_are_not_shown(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in s3.environment:
        monkeypatch.delenv(name)
    bucket = s3.new_bucket()
    uri = f"s3://{s3.access_key}:{s3.secret_key}@{bucket}/x?endpoint_override=127.0.0.1:{s3.port}&scheme=http"
    place = locate(uri) / "y.txt"
    place.write_text("there")
    assert s3.keys(bucket) == ["x/y.txt"]
    assert str(place) == f"s3://{bucket}/x/y.txt"
    assert s3.secret_key not in repr(place)
    assert locate(place.uri).read_text() == "there"
    with pytest.raises(StorageError) as caught:
        (locate(f"s3://{s3.access_key}:{s3.secret_key}@absent/x{uri[uri.index('?') :]}") / "y").write_text(
            "z"
        )
    assert "s3://absent/x/y" in str(caught.value)
    assert s3.secret_key not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nope://bucket/x", "got nope://"),
        ("s3://AKIA:top/secret@bucket/x", r"s3://bucket/x: expected .*Cannot parse URI: 's3://bucket/x'"),
        ("s3://bucket/x?foo=topsecret", "Unexpected query parameter"),
        ("memory://", "expected a path after the scheme"),
    ],
)
def test_a_uri_that_cannot_be_used_is_one_error_without_secrets(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        locate(uri)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_environment_of_object_stores_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "here")
    monkeypatch.setenv("HOMEWORK", "h")
    assert storage_environment()["AWS_REGION"] == "here"
    assert "HOMEWORK" not in storage_environment()


def test_fsspec_is_asked_for_what_pyarrow_does_not_know() -> None:
    place = locate("memory://somewhere/x.txt")
    place.write_text("there")
    assert fsspec.filesystem("memory").cat("/somewhere/x.txt") == b"there"
