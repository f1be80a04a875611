"""The table of field cases: each of its rows names tests, and each test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/field_cases.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@lru_cache
def list_functions(file: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)}


def list_rows() -> list[str]:
    """Return the rows of the page's tables, without their heads."""
    lines = PAGE.read_text().splitlines()
    return [line for line, above in zip(lines[1:], lines) if line.startswith("| ") and above.startswith("|")]


def test_every_row_names_its_tests_and_they_exist():
    rows = list_rows()
    assert len(rows) > 40
    for row in rows:
        tests = TEST.findall(row)
        assert tests, row
        assert all(name in list_functions(file) for file, name in tests), row


def test_tests_named_below_the_tables_exist():
    for file, name in TEST.findall(PAGE.read_text()):
        assert name in list_functions(file), (file, name)
