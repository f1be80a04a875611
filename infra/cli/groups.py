"""Groups of commands of which one is the default, so that its name may be left out."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from pipelines.console import console
from pipelines.presets.resolve import PRESETS, is_override
from presto_core.config.loader import list_presets


class DefaultGroup(TyperGroup):
    """A group whose `default` runs if its arguments name no command, unless the first one looks like a misspelled one.

    Attributes:
        default: its name.
        runs_alone: whether it runs without arguments too; otherwise the group then prints its help.
        notice: printed when the name is left out.
    """

    default = ""
    runs_alone = False
    notice = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self._is_default(args):
            self._refuse_misspelled(ctx, args)
            if self.notice:
                console.print(self.notice)
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def _is_default(self, args: list[str]) -> bool:
        if not args:
            return self.runs_alone
        return args[0] not in self.commands and args[0] != "--help"

    def _refuse_misspelled(self, ctx: Any, args: list[str]) -> None:
        """Refuse a first word that is like a command and is no argument of the default one; raises UsageError."""
        word = next(iter(args), "-")
        if word.startswith("-") or is_override(word) or word in list_presets(PRESETS) or Path(word).exists():
            return
        if matches := get_close_matches(word, self.commands, 1):
            ctx.fail(f"No such command {word!r}. Did you mean {matches[0]!r}?")


class SweepGroup(DefaultGroup):
    """`presto sweep demo …` is `presto sweep run demo …`."""

    default = "run"


class StudyGroup(DefaultGroup):
    """`presto study` was what `presto study seeds` is before it was a group."""

    default, runs_alone = "seeds", True
    notice = "presto study is short for presto study seeds; others: presto study --help"


class RunsGroup(DefaultGroup):
    """`presto runs storage.root=…` lists the runs."""

    default, runs_alone = "list", True
