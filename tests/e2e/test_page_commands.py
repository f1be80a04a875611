"""Commands of the pages: every one is classed, has no wrong word, and runs if its mark says so."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from tests.e2e.command_check import find_import_problem, find_presto_problem, find_problem, get_command, list_targets
from tests.e2e.first_hour import STEPS
from tests.e2e.page_commands import MENTION, ROOT, UNMARKED, PageCommand, read_all_commands, read_blocks, read_commands

COMMANDS = read_all_commands()
FENCE = "```"


@pytest.fixture
def folder(empty: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a newcomer has of what commands name."""
    (empty / "prompts.csv").write_text("prompt,seed\nsolo piano,1\n")
    (empty / "token").write_text("0" * 64)
    (empty / "token").chmod(0o600)
    (empty / "winner.yaml").write_text("extends: demo\n")
    (empty / "mine.yaml").write_text("extends: demo\nsweep: {spaces: [noise]}\nvalidation: {every: 5}\n")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    return empty


def test_every_block_of_commands_is_marked():
    assert [f"{command.page}:{command.line}: {command.shell}" for command in COMMANDS if command.kind == UNMARKED] == []


def test_there_are_commands_of_every_class():
    assert {command.kind for command in COMMANDS} == {"run", "run: slow", "run by", "not run", MENTION}
    assert len(COMMANDS) > 300


@pytest.mark.parametrize(
    "text",
    [
        f"{FENCE}bash\npresto demo\n{FENCE}\n",
        f"{FENCE}\npresto demo\n{FENCE}\n",
        f"{FENCE}yaml\npresto demo\n{FENCE}\n",
        f"{FENCE}python\nimport presto_core\n{FENCE}\n",
        f"{FENCE}console\n$ presto demo\nmade\n{FENCE}\n",
        f"1. A list\n\n   {FENCE}sh\n   presto demo\n   {FENCE}\n",
        f"<!-- run -->\n\ntext in between\n\n{FENCE}sh\npresto demo\n{FENCE}\n",
        f"<!-- not run -->\n{FENCE}sh\nkubectl get pods\n{FENCE}\n".replace("not run", "not run soon"),
        "~~~sh\npresto demo\n~~~\n",
        "Type\n\n    presto demo\n\nand wait.\n",
        "Type\n\n    $ presto demo\n",
    ],
)
def test_a_block_without_a_mark_is_found(text: str):
    assert {command.kind for command in read_commands(text, "page.md")} == {UNMARKED}


def test_commands_of_a_line_a_transcript_and_a_text_are_read():
    typed = "A=1 presto ingest \\\n  a.b='c d' && make test > y | tee x  # why"
    text = f"<!-- run -->\n{FENCE}sh\n{typed}\n{FENCE}\nSee `presto demo`.\n"
    words = [command.words for command in read_commands(text, "page.md")]
    assert words == [("presto", "ingest", "a.b=c d"), ("make", "test"), ("tee", "x"), ("presto", "demo")]
    transcript = f"Written by `make first-hour`:\n\n{FENCE}console\n$ presto x\npresto: no\n{FENCE}\n"
    command, _mention = read_commands(transcript, "page.md")
    assert (command.kind, command.note, command.words) == ("run by", "make first-hour", ("presto", "x"))


# over 10 s on a busy machine: some 250 dry runs, of which the first one of each command imports what it needs
def test_no_command_of_a_page_has_a_wrong_word(folder: Path):
    before = sorted(path.name for path in folder.iterdir())
    problems = {f"{c.page}:{c.line}: {c.shell}": problem for c in COMMANDS if (problem := find_problem(c))}
    assert problems == {}
    assert sorted(path.name for path in folder.iterdir()) == before, "a dry run or a command that reads left a file"


@pytest.mark.parametrize(
    "line",
    [
        "presto distil-steps demo",
        "presto distill-steps demo --form candidate-l",
        "presto distill-steps demo steps.p_dmd.knd=karras",
        "presto distill-steps demo steps.p_dmd.kind=karas",
        "presto distill-steps dmo",
        "presto evaluate demo $ROT",
        "presto registry promote candidate-ls promote.max_mdm=1 --why x",
        "presto registry serch 'mmd < 1'",
        "presto report presto-report storage.rot=/x",
        "presto sweep demo --space niose",
        "presto sweep demo --space noise --sampels 3",
        "presto explain steps.p_gn",
        "presto config distill-step demo",
        "presto generate 'a song' --modle champion",
        "presto generate 'a song' generate.stepz=4",
        "presto edit song.wav harp --region 4",
        "presto plan paper --device h10",
        "presto export candidate-ls out --format onx",
        "presto study paper --onyl noise",
        "presto jobs list --onn http://head:8265",
        "presto train-teacher paper --on http//head",
        "presto serve --hots 0.0.0.0",
        "make tset",
        "python -m tests.bench.no_such",
        "python examples/no_such.py",
        "kubectl apply -k infra/kuberay/overlays/no_such",
    ],
)  # fmt: skip
def test_a_wrong_word_is_found(line: str, folder: Path):
    (command,) = read_commands(f"<!-- not run: x -->\n{FENCE}sh\n{line}\n{FENCE}\n", "page.md")
    assert find_problem(command)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.kind == "run" and "--help" not in c.words], ids=str)
def test_a_mistyped_option_of_what_runs_is_found(command: PageCommand, folder: Path):
    assert find_presto_problem([*command.words[1:], "--no-such-option"], is_mention=False)


def test_an_import_that_is_gone_is_found():
    assert find_import_problem("from presto_core.errors import UserError, Gone") == "no presto_core.errors.Gone"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.kind == "run"], ids=lambda c: f"{c.page}:{c.words[-1]}")
def test_commands_marked_run_succeed(command: PageCommand, folder: Path):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        get_command().main([*command.words[1:]], standalone_mode=False)
    assert printed.getvalue() or list(folder.glob(".presto/out/*.wav"))


def test_what_marks_name_exists_and_has_the_commands():
    for block in [
        b for path in sorted((ROOT / "docs").rglob("*.md")) for b in read_blocks(path.read_text(), path.name)
    ]:
        named = re.findall(r"\btests/[\w/.]+\w", block.note)
        assert [path for path in named if not (ROOT / path).exists()] == [], block
        assert set(re.findall(r"make ([\w-]+)", block.note)) <= list_targets(), block
        if block.kind == "run by" and named:
            tested = (ROOT / named[0]).read_text()
            keys = set(re.findall(r"\s([a-z]+\.[a-z_.]+)=", "\n".join(block.lines)))
            assert {key for key in keys if key not in tested} == set(), block


def test_the_transcript_of_the_first_hour_is_that_of_its_steps():
    page = (ROOT / "docs/first_hour.md").read_text()
    assert [line for block in read_blocks(page, "") for line in block.lines] == [step.command for step in STEPS]
