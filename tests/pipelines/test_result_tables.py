"""Tables of results at every width: nothing is lost on a narrow terminal, and a pipe gets whole lines."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.table import Table

from pipelines.console import make_console, make_table, print_table
from tests.pipelines.test_console import WIDTHS, render


def cells_of(lines: list[str]) -> list[str]:
    """The cells of a printed table of one row, from its wrapped lines."""
    rows = [line.strip("│").split("│") for line in lines if line.startswith("│")]
    return ["".join(cell.strip() for cell in column) for column in zip(*rows, strict=True)]


LISTINGS = {
    "registry list": (
        ("version", "content", "what", "aliases", "FD", "NFE", "ms", "licence", "created"),
        ["presto-generator@v12", "ab12cd34ef56", "LS", "candidate champion", "12.34", "4", "123", "CC0-1.0, CC-BY-4.0",
         "2026-11-29 16:00"],
    ),
    "runs": (
        ("run", "stage", "state", "step", "age", "checkpoint"),
        ["0123456789abcdef", "distill-layers", "interrupted", "12000", "3 h", "12 min ago"],
    ),
    "dataset stats": (None, ["deviation", "0.998 of " + "latents" * 20]),
    "quarantine": (
        ("uri", "stage", "error", "message"),
        ["s3://bucket/" + "folder/" * 12 + "track.flac", "decode", "DecodeError", "the file ends early " * 6],
    ),
}  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", LISTINGS)
def test_no_cell_loses_a_character_at_any_width(name: str, width: int):
    columns, row = LISTINGS[name]
    lines = render(make_table(name, columns, [row]), width)
    assert max(map(cell_len, lines)) <= width
    assert [cell.replace(" ", "") for cell in cells_of(lines)] == [cell.replace(" ", "") for cell in row]


@pytest.mark.parametrize("name", LISTINGS)
def test_short_columns_stay_whole_at_80(name: str):
    columns, row = LISTINGS[name]
    lines = render(make_table(name, columns, [row]), 80)
    for cell in (cell for cell in row if len(cell) <= 6):
        assert any(cell in line for line in lines), cell


@pytest.mark.parametrize("name", LISTINGS)
def test_a_pipe_gets_each_row_in_one_line(name: str, capsys: pytest.CaptureFixture[str]):
    columns, row = LISTINGS[name]
    print_table(name, columns, [row])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(lines) == 1
    assert all(cell.strip() in lines[0] for cell in row)


def test_a_pipe_has_80_columns_for_what_needs_less():
    out = io.StringIO()
    results = make_console(out)
    results.print(Table("a", caption="word " * 40))
    results.print("x" * 300)
    assert results.width == 300
    assert "x" * 300 in out.getvalue()
    results.print("short")
    assert results.width == 80


def test_brackets_in_cells_and_titles_are_text(capsys: pytest.CaptureFixture[str]):
    print_table("runs below [bold]x", ("[red]a",), [["inputs.compared=[a, b]"]])
    out = capsys.readouterr().out
    assert "[bold]x" in out
    assert "[red]a" in out
    assert "inputs.compared=[a, b]" in out
