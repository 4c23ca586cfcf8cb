"""An S3-compatible server on this machine, in a process of its own, for as long as a test needs it.

In a process of its own: pyarrow may wait for an answer while it holds the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_MOTO = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""

_names = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A running server that takes one pair of keys."""

    port: int
    access_key: str = "test-access-key"
    secret_key: str = field(default="test-secret-key", repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead every S3 client here."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def client(self) -> Any:
        """Return a boto3 client."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )

    def new_bucket(self) -> str:
        """Create a bucket and return its name."""
        name = f"bucket-{next(_names)}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str) -> list[str]:
        """Return the keys in a bucket, without the empty markers of folders."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        found = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return [key for key in found if not key.endswith("/")]


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """Run moto's server; it ends with its standard input, whatever becomes of the test."""
    with subprocess.Popen(
        [sys.executable, "-c", _MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        line = process.stdout.readline()
        assert line.strip().isdecimal(), f"moto's server did not start: {line!r}"
        try:
            yield S3Server(port=int(line))
        finally:
            process.stdin.close()
            process.wait(timeout=30)
