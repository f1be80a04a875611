"""How many examples tests with random input try: few by default, more with PRESTO_FUZZ=50 (`make test-fuzz`)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = int(os.environ.get("PRESTO_FUZZ", "1"))

# what breaks formats, markup, queries, file names or terminals
TOKENS = (
    "\0", "\n", "\r\n", "\t", "\x1b[31m", "\ufeff", "\u2028", "\x85", "'", '"', "`", "\\", "%", "_", ",", ";", "|",
    "[/b]", "[red]", "{}", "${x}", "#", "=", "- ", "..", "/", "./", "nan", "None", "null", "true", "1e400", "-0",
    "12345678901234567890", "2026-11-30", "120 bpm", "C♯ minor", "Am", "e\u0301", "é", "🎹", "界", "אב", "ß", "İ", "ﬃ",
    " and ", " or ", "mmd < 1", "seed", "name", "created", "@", "v3", "models:/", "-4steps-seed0-1f0c9a3e",
)  # fmt: skip


def few(count: int) -> settings:
    """Settings of a test of `count` examples: the same ones each time, unless more are asked for."""
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def make_texts(*, is_valid: bool = True) -> st.SearchStrategy[str]:
    """Texts of letters and of what breaks formats; unless `is_valid`, also with halves of characters."""
    letters = st.text(st.characters(exclude_categories=["Cs"]) if is_valid else st.characters(), max_size=6)
    return st.lists(st.sampled_from(TOKENS) | letters, max_size=5).map("".join)
