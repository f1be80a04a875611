"""What a bug leaves behind: a traceback for its owner, without secrets and without what a terminal obeys."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.cli import main as module

SECRET = "hunter2-planted"


@pytest.fixture
def crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Callable[[], None]], tuple[int, str]]:
    """Runs the entry point in an empty folder with a body of the test's; returns exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "handle_sigterm", lambda: None)
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)

    def run(body: Callable[[], None]) -> tuple[int, str]:
        monkeypatch.setattr(module, "app", body)
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err

    return run


def fail() -> None:
    raise RuntimeError(f"no answer of postgresql://u:{SECRET}@db/x\nfor \x1b]0;owned\x07a[/red].flac")


def test_a_traceback_is_kept_without_secrets_and_for_its_owner_only(crash: Callable[..., tuple[int, str]]):
    old = Path(".presto/crash.log")
    old.parent.mkdir()
    old.write_text("older")
    old.chmod(0o644)
    code, printed = crash(fail)
    kept = old.read_text()
    assert code == 70
    assert "a[/red].flac" in printed
    assert "RuntimeError" in kept
    assert "older" not in kept
    assert old.stat().st_mode & 0o777 == 0o600
    for text in (kept, printed):
        assert SECRET not in text
        assert not {"\x1b", "\x07"} & set(text)


def test_in_a_job_the_traceback_is_in_its_log(crash: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PRESTO_JOB", "presto-ingest-0")
    _, printed = crash(fail)
    assert "Traceback" in printed
    assert SECRET not in printed


def test_a_folder_that_cannot_be_written_does_not_hide_the_error(crash: Callable[..., tuple[int, str]]):
    Path(".presto").write_text("a file")
    code, printed = crash(fail)
    assert code == 70
    assert "Traceback" in printed


def test_what_a_library_logs_is_escaped_and_without_secrets(
    crash: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger("somebody"), "propagate", False)  # pytest listens at the root

    def warn() -> None:
        logging.getLogger("somebody").warning("s3://key:%s@host/a\x1b[31m[/red]", SECRET)
        raise SystemExit(3)

    code, printed = crash(warn)
    assert code == 3
    assert printed == "s3://host/a\\x1b[31m[/red]\n"
