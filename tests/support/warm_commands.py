"""`presto` commands as processes forked from one that has imported everything: a start costs milliseconds, not seconds.

A test of a command's start itself, of its signals or of what it imports starts Python anew (`processes.py`).
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

PRELOADED = ("infra.cli.main", "tests.support.warm_imports")


def run_presto(
    args: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: str | None = None, timeout_s: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run `presto ARGS` in a process and a session of its own, as `subprocess.run` would.

    Raises:
        subprocess.TimeoutExpired: it did not end in time, and was killed.
    """
    with tempfile.TemporaryDirectory(prefix="presto-command-") as folder:
        streams = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin or "")
        process = open_forkserver().Process(target=be_presto, args=(list(args), cwd, dict(env), streams))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["presto", *args], timeout_s, *(path.read_bytes() for path in streams[1:]))
        code = process.exitcode
        process.close()
        stdout, stderr = (path.read_text() for path in streams[1:])
    return subprocess.CompletedProcess(["presto", *args], code, stdout, stderr)


@cache
def open_forkserver() -> ForkServerContext:
    """Start the process that imports; it ends with the tests' own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    before = os.environ.get("TERM")
    os.environ["TERM"] = "dumb"  # rich decides about colours when it is imported
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["TERM"]
        else:
            os.environ["TERM"] = before
    return context


def be_presto(args: list[str], cwd: Path, env: dict[str, str], streams: list[Path]) -> None:
    """Become the command: its own session, folder, environment, standard streams and arguments."""
    os.setsid()
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["presto", *args]
    from infra.cli.main import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without
