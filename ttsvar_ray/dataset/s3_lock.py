"""A lock as an S3 object that is only ever written on condition.

Guarantee: of any number of runs that reach for a lock, free or stale, one gets it: S3 refuses all writings
but the first (`If-None-Match: *` for a free lock, `If-Match: <etag>` for one that is taken over or beats).
A server that does not know these headers and ignores them makes this lock advisory.
"""

from __future__ import annotations

import contextlib
import email.utils
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ttsvar_ray.dataset.lock_files import FoundLock, owner_of, to_text
from ttsvar_ray.errors import StorageError
from ttsvar_ray.storage.location import Location

_REFUSED = frozenset({"ConditionalRequestConflict", "PreconditionFailed", "NoSuchKey", "404", "412"})

_NO_CONDITIONS = frozenset({"NotImplemented", "501"})


def has_s3_client() -> bool:
    """Whether the S3 client is installed that can write on condition (extra `s3`)."""
    return importlib.util.find_spec("boto3") is not None


class S3Lock:
    """The object holds the owner; a sign of life writes it again."""

    def __init__(self, location: Location, token: str) -> None:
        self._shown = str(location)
        self._bucket, _, self._key = location.path.partition("/")
        self._client = _client_of(location.uri)
        self._token = token
        self._text = ""
        self._etag = ""

    def read(self) -> FoundLock | None:
        """Return the lock that is there."""
        with self._named_errors():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key)
            except self._client.exceptions.NoSuchKey:
                return None
            text = answer["Body"].read()
        written = answer["LastModified"]
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = email.utils.parsedate_to_datetime(date) if date else written
        return FoundLock(
            owner=owner_of(text),
            silence_s=(now - written).total_seconds(),
            beat=(answer["ETag"], written),
            version=answer["ETag"],
        )

    def claim(self, owner: Mapping[str, Any], found: FoundLock | None) -> bool:
        """Write the lock on condition that it is as it was found."""
        self._text = to_text(owner, self._token)
        return self._put({"IfNoneMatch": "*"} if found is None else {"IfMatch": found.version})

    def beat(self) -> bool:
        """Write the lock again, on condition that it is still ours."""
        assert self._etag, "only the owner of a lock gives signs of life"
        return self._put({"IfMatch": self._etag})

    def release(self) -> None:
        """Delete the object, on condition that it is still ours where client and server know conditions."""
        found = self.read()
        if found is None or found.owner.get("token") != self._token:
            return
        from botocore.exceptions import ClientError

        name = {"Bucket": self._bucket, "Key": self._key}
        with self._named_errors():
            if not self._deletes_on_condition():
                self._client.delete_object(**name)
                return
            try:
                self._client.delete_object(**name, IfMatch=found.version)
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code in _NO_CONDITIONS:
                    self._client.delete_object(**name)
                elif code not in _REFUSED:
                    raise

    def _deletes_on_condition(self) -> bool:
        shape = self._client.meta.service_model.operation_model("DeleteObject").input_shape
        return "IfMatch" in shape.members

    def _put(self, condition: Mapping[str, str]) -> bool:
        from botocore.exceptions import ClientError

        with self._named_errors():
            try:
                answer = self._client.put_object(
                    Bucket=self._bucket, Key=self._key, Body=self._text.encode(), **condition
                )
            except ClientError as error:
                if error.response["Error"]["Code"] in _REFUSED:
                    return self._is_ours_after_all()
                raise
        self._etag = answer["ETag"]
        return True

    def _is_ours_after_all(self) -> bool:
        """Whether a refused writing was the second try of one that arrived, though its answer did not."""
        found = self.read()
        if found is None or found.owner.get("token") != self._token:
            return False
        self._etag = found.version
        return True

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise StorageError(f"{self._shown}: the storage refused or failed ({error})") from error


def _client_of(uri: str) -> Any:
    """Return a client for the bucket of a URI, with the same endpoint and keys as pyarrow takes from it."""
    import boto3
    from botocore.config import Config

    parts = urlsplit(uri)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    endpoint = query.get("endpoint_override")
    if endpoint is not None and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    is_elsewhere = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        # A sign of life that takes longer than the lock lives is none.
        connect_timeout=3,
        read_timeout=5,
        retries={"mode": "standard", "total_max_attempts": 2},
        s3={"addressing_style": "path" if is_elsewhere else "auto"},
    )
    keys: dict[str, str] = {}
    if parts.username and parts.password:
        keys = {
            "aws_access_key_id": unquote(parts.username),
            "aws_secret_access_key": unquote(parts.password),
        }
    region = query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return boto3.client("s3", endpoint_url=endpoint, region_name=region, config=config, **keys)
