"""One line of JSON per request and event; a prompt is in it only if the operator asked for that."""

from __future__ import annotations

import json
import logging
import sys
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from pipelines.redaction import redact
from pipelines.serve.settings import ServeSettings
from presto_core.artifacts.durable import make_folders


class AccessLog:
    """Writes lines of JSON to a file, which may be rotated by others, or to standard output."""

    def __init__(self, handler: logging.Handler, *, with_prompts: bool) -> None:
        self._handler, self._with_prompts = handler, with_prompts
        handler.setFormatter(logging.Formatter("%(message)s"))

    def write(self, *, prompt: str | None = None, **fields: Any) -> None:
        """Write one line; a prompt is left out, or is as the client sent it, if the operator wants prompts."""
        record = logging.makeLogRecord({"levelno": logging.INFO})
        entry = {"time": logging.Formatter().formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), **fields}
        if self._with_prompts and prompt is not None:
            entry["prompt"] = prompt
        record.msg = redact(json.dumps(entry, ensure_ascii=True, default=str))
        self._handler.handle(record)


def open_log(settings: ServeSettings) -> AccessLog:
    """Return the log that the settings name."""
    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    if settings.log_file:
        make_folders(Path(settings.log_file).parent)
        handler = WatchedFileHandler(settings.log_file, encoding="utf-8")
    return AccessLog(handler, with_prompts=settings.log_prompts)
