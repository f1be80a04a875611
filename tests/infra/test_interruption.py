"""Ctrl-C and SIGTERM end every command alike: one line that tells how to go on, exit status 130 or 143."""

from __future__ import annotations

import gc
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.cli import main as cli
from infra.cli.interruption import KEPT, UNCHANGED, describe_kept
from pipelines.cluster.shutdown import (
    CTRL_C_REASON,
    SIGTERM_REASON,
    StoppedError,
    StopRequest,
    TerminatedError,
    block_ctrl_c,
    keep_signal_handlers,
    raise_terminated,
)
from pipelines.stages.table import STAGES
from tests.support.processes import PRESTO, Attempt, wait_for

Main = Callable[..., tuple[int, str]]
SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Main]:
    """Runs the entry point in this process, in an empty folder; returns its exit status and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threshold = gc.get_threshold()

    def run(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["presto", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capsys.readouterr().err

    yield run
    gc.set_threshold(*threshold)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def raise_signal(monkeypatch: pytest.MonkeyPatch, stage: str, number: signal.Signals) -> None:
    """Make a stage send a signal to its own process."""
    module = types.ModuleType("made_up_stage_that_is_interrupted")
    module.run = lambda *_: signal.raise_signal(number)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(STAGES, stage, replace(STAGES[stage], module=module.__name__))


@SIGNALS
@pytest.mark.parametrize(
    ("stage", "args"),
    [
        ("corpus", ("corpus", "build")),
        ("ingest", ("ingest", "ingest.source=.")),
        ("train-teacher", ("train-teacher", "inputs.dataset=./")),
        ("distill-steps", ("distill-steps", "inputs.dataset=./", "inputs.teacher=./")),
        ("generate", ("generate", "a song")),
    ],
)
def test_a_stage_ends_with_one_line(
    main: Main, monkeypatch: pytest.MonkeyPatch, stage: str, args: tuple[str, ...], number: signal.Signals, code: int
):
    raise_signal(monkeypatch, stage, number)
    status, text = main(*args)
    assert status == code
    assert text.startswith("presto: ")
    assert len(text.splitlines()) == 1
    assert describe_kept(args) in text != UNCHANGED


@SIGNALS
@pytest.mark.parametrize(
    ("function", "args"),
    [
        ("pipelines.workflows.demo.run", ("demo",)),
        ("pipelines.workflows.pretrained.run", ("pretrain",)),
        ("pipelines.doctor.doctor.run", ("doctor",)),
        ("infra.cli.plan.estimate_stages", ("plan", "demo")),
        ("pipelines.storage.local_s3.start", ("s3", "start")),
        ("infra.cli.main.list_presets", ("presets",)),
    ],
)
def test_so_do_workflows_and_commands_that_only_look(
    main: Main, monkeypatch: pytest.MonkeyPatch, function: str, args: tuple[str, ...], number: signal.Signals, code: int
):
    monkeypatch.setattr(function, lambda *_, **__: signal.raise_signal(number))
    status, text = main(*args)
    assert (status, len(text.splitlines())) == (code, 1)
    assert describe_kept(args) in text


def test_every_long_command_tells_what_it_leaves_behind():
    long = "corpus build|codec fit|ingest|train-teacher|distill-layers|distill-steps|evaluate|generate|demo|pretrain"
    long += "|sweep demo|sweep run demo|study paper|study seeds|registry pull|registry gc --delete|s3 start|jobs wait"
    for command in long.split("|"):
        assert describe_kept(command.split()) != UNCHANGED, command
    for command in ("plan demo", "doctor", "registry verify", "listening-test build x", "demo --dry-run"):
        assert describe_kept(command.split()) == UNCHANGED
    assert describe_kept(["sweep", "report"]) == KEPT["sweep", "report"] != KEPT[("sweep",)]


@SIGNALS
def test_a_training_that_saves_first_ends_with_the_status_of_the_signal(number: signal.Signals, code: int):
    stop = StopRequest()
    assert stop.exit_code == 1  # a preemption, or a signal of health
    with stop.handle_signals():
        signal.raise_signal(number)
    assert stop.reason == {signal.SIGINT: CTRL_C_REASON, signal.SIGTERM: SIGTERM_REASON}[number]
    assert stop.exit_code == code


def test_the_first_reason_decides_and_a_second_ctrl_c_ends_at_once():
    stop = StopRequest()
    stop.request("unhealthy")
    with stop.handle_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (stop.reason, stop.exit_code) == ("unhealthy", 1)


def test_the_status_of_a_stopped_run_reaches_the_shell(main: Main, monkeypatch: pytest.MonkeyPatch):
    stopped = StoppedError("stopped at step 3 of 9; its state is saved")
    stopped.exit_code = 143

    def run(*_: object) -> None:
        raise stopped

    raise_signal(monkeypatch, "corpus", signal.SIGINT)
    monkeypatch.setattr(sys.modules[STAGES["corpus"].module], "run", run)
    assert main("corpus", "build") == (143, f"presto: {stopped}\n")


def test_handlers_that_a_library_replaces_are_put_back_but_not_the_default_one():
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        with keep_signal_handlers():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        with pytest.raises(TerminatedError):
            signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with keep_signal_handlers():  # otherwise a process that SIGTERM kills would leave Ray's behind
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_processes_started_while_ctrl_c_is_blocked_do_not_see_it():
    with block_ctrl_c():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


# over 10 s: two processes that render music
def test_ctrl_c_in_a_terminal_ends_the_corpus_without_tracebacks_of_its_workers(tmp_path: Path):
    """A terminal sends SIGINT to all processes of the command."""
    settings = ("corpus.minutes=30", "corpus.clip_seconds=5", "corpus.real_fraction=0", "cluster.cpus=2")
    attempt = Attempt([PRESTO, "corpus", "build", *settings], tmp_path)
    try:
        rows = tmp_path / ".presto/corpus/rows"
        assert wait_for(lambda: list(rows.glob("*.json")), 300), attempt.stderr
        os.killpg(attempt.process.pid, signal.SIGINT)
        assert attempt.process.wait(120) == 130
    finally:
        attempt.end()
    assert "Traceback" not in attempt.stderr
    assert attempt.stderr.splitlines()[-1].startswith("presto: interrupted: ")
    assert list(rows.glob("*.json"))
