"""How a command ends at Ctrl-C and SIGTERM: one line that tells what is kept and how to go on, and 130 or 143."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

from pipelines.cluster.shutdown import TerminatedError, raise_terminated

RESUME = "run the same command again to resume"
# what a command leaves behind, by its first words; of all others, nothing that counts
KEPT = {
    ("corpus", "build"): f"finished clips are kept; {RESUME}",
    ("codec", "fit"): "no weights are written; run the same command again, which starts anew",
    ("ingest",): f"encoded files are kept; {RESUME}",
    ("train-teacher",): f"the last checkpoint is kept; {RESUME}",
    ("distill-layers",): f"the last checkpoint is kept; {RESUME}",
    ("distill-steps",): f"the last checkpoint is kept; {RESUME}",
    ("evaluate",): f"clips of finished systems are kept; {RESUME}",
    ("generate",): "finished clips are kept, and play the same when the command runs again",
    ("demo",): f"finished stages and the last checkpoint are kept; {RESUME}",
    ("pretrain",): f"finished stages and the last checkpoint are kept; {RESUME}",
    ("study",): f"finished runs and measurements are kept; {RESUME}",
    ("sweep", "report"): "its trials are kept; run the same command again",
    ("sweep", "spaces"): "nothing was changed",
    ("sweep",): f"finished trials are kept; {RESUME}",
    ("registry", "pull"): f"what is copied so far is kept; {RESUME}",
    ("registry", "push"): f"nothing is registered; {RESUME}",
    (
        "registry",
        "promote",
    ): "presto registry show tells whether it is promoted; run the same command again if it is not",
    ("registry", "rollback"): "presto registry show tells which is champion; run the same command again if it is not",
    ("registry", "gc"): "what is deleted stays so; run the same command again for the rest",
    ("s3", "start"): "the server is stopped unless it ran before; run the same command again",
    ("serve",): "the service is stopped; run the same command to start it again",
    ("jobs",): "the job is not affected; presto jobs list shows it",
}
UNCHANGED = "nothing was changed; run the same command again"


def handle_sigterm() -> None:
    """Let SIGTERM raise an exception, as Ctrl-C does, unless it is ignored."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, raise_terminated)


def find_interrupt(stop: SystemExit) -> KeyboardInterrupt | None:
    """The interrupt that Typer turned into an exit without a message."""
    cause = getattr(stop.__context__, "__cause__", None)
    return cause if isinstance(cause, KeyboardInterrupt) else None


def describe_interrupt(interrupt: KeyboardInterrupt, args: Sequence[str]) -> tuple[str, int]:
    """Return the message and the exit code.

    Args:
        args: the command line, without the program.
    """
    is_sigterm = isinstance(interrupt, TerminatedError)
    code = 128 + (signal.SIGTERM if is_sigterm else signal.SIGINT)
    reason = "ended by SIGTERM" if is_sigterm else "interrupted"
    return f"{reason}: {describe_kept(args)}", code


def describe_kept(args: Sequence[str]) -> str:
    """What the command of these arguments leaves behind, and how to go on."""
    names = [arg for arg in args if not arg.startswith("-")]
    if "--dry-run" in args:
        return UNCHANGED
    return KEPT.get(tuple(names[:2])) or KEPT.get(tuple(names[:1])) or UNCHANGED
