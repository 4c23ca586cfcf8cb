"""Which lock each storage has, and locks of output folders on S3."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.support.s3_server import S3Server
from ttsvar_ray.dataset import lock as lock_module
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.lock import OutputLock
from ttsvar_ray.dataset.lock_files import AdvisoryLock, LocalLock
from ttsvar_ray.dataset.s3_lock import S3Lock
from ttsvar_ray.errors import StorageError
from ttsvar_ray.storage.location import locate


def test_each_storage_is_locked_as_well_as_it_can(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kind(where: str) -> type:
        return type(lock_module.lock_file_of(OutputLayout(where), "t"))

    assert kind(str(tmp_path)) is LocalLock
    assert kind("s3://bucket/x") is S3Lock
    assert kind("memory://x") is AdvisoryLock
    monkeypatch.setattr(lock_module, "has_s3_client", lambda: False)
    assert kind("s3://bucket/x") is AdvisoryLock
    assert "the lock is advisory without boto3" in caplog.text


def test_a_sign_of_life_whose_answer_was_lost_is_no_takeover(s3: S3Server) -> None:
    layout = OutputLayout(f"s3://{s3.new_bucket()}/x")
    lock = S3Lock(layout.lock_file, "token")
    assert lock.claim({"pid": 1}, None)
    lock._etag = '"of the writing before"'
    assert lock.beat()
    assert lock.beat()


def test_a_bucket_that_is_not_there_is_told(s3: S3Server) -> None:
    with pytest.raises(StorageError, match=r"s3://absent/x/\.lock: the storage refused or failed"):
        OutputLock(OutputLayout("s3://absent/x")).__enter__()


@pytest.mark.parametrize(
    ("code", "is_deleted"), [("NotImplemented", True), ("PreconditionFailed", False), (None, True)]
)
def test_a_lock_on_s3_is_deleted_on_condition_where_the_server_can(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, code: str | None, is_deleted: bool
) -> None:
    layout = OutputLayout(f"s3://{s3.new_bucket()}/x")
    lock = S3Lock(layout.lock_file, "token")
    assert lock.claim({"pid": 1}, None)
    delete = lock._client.delete_object

    def answer(**given: str) -> None:
        if "IfMatch" in given and code is not None:
            raise ClientError({"Error": {"Code": code}}, "DeleteObject")
        delete(**given)

    monkeypatch.setattr(lock._client, "delete_object", answer)
    lock.release()
    assert layout.lock_file.is_file() is not is_deleted


def test_a_sign_of_life_on_s3_cannot_outlast_the_lock(s3: S3Server) -> None:
    config = S3Lock(locate(f"s3://{s3.new_bucket()}/x/.lock"), "t")._client.meta.config
    one_try = config.connect_timeout + config.read_timeout
    tries = config.retries["total_max_attempts"]
    assert one_try * tries + lock_module.HEARTBEAT_S < lock_module.STOP_AFTER_S < lock_module.STALE_AFTER_S
