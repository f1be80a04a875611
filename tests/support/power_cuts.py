"""A model of a local disk that loses what was not synced: records a flow's writes, and replays every power cut.

What the disk has for sure is the content of a file when it was last fsynced, and the names of a folder when that was
last fsynced. Of the rest, a crash may keep anything: `iter_crashes` makes the folders with none of it, with all names
but no unsynced bytes (the file of length 0 after a rename), and with seeded choices between.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

Inode = int
Names = dict[str, Inode]


@dataclass
class Moment:
    """What a process sees, and what the disk has for sure.

    Attributes:
        contents, names: of files and folders by inode, as processes see them.
        synced_contents, synced_names: those when they were last synced.
        done: number of the flow's steps that had returned.
    """

    contents: dict[Inode, bytes]
    names: dict[Inode, Names]
    synced_contents: dict[Inode, bytes]
    synced_names: dict[Inode, Names]
    done: int


@dataclass
class Disk:
    """Records a folder's moments: before and after everything that syncs, names or removes."""

    root: Path
    moments: list[Moment] = field(default_factory=list)
    synced_contents: dict[Inode, bytes] = field(default_factory=dict)
    synced_names: dict[Inode, Names] = field(default_factory=dict)
    done: int = 0
    lock: Any = field(default_factory=threading.RLock)
    ids: dict[int, Inode] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    def look(self) -> None:
        """Record a moment, if anything changed since the last one."""
        contents, names, seen = dict[Inode, bytes](), dict[Inode, Names](), set[int]()
        for parent, _, _ in os.walk(self.root):
            entries = list(os.scandir(parent))
            seen |= {entry.inode() for entry in entries}
            names[self.identify(os.stat(parent).st_ino)] = self.name(entries)
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    contents[self.identify(entry.inode())] = Path(entry.path).read_bytes()
        top = os.stat(self.root).st_ino
        self.ids = {number: own for number, own in self.ids.items() if number in seen or number == top}
        moment = Moment(contents, names, dict(self.synced_contents), dict(self.synced_names), self.done)
        if not self.moments or moment != self.moments[-1]:
            self.moments.append(moment)

    def identify(self, number: int) -> Inode:
        """Give an inode a number that is not used again after it is gone."""
        if number not in self.ids:
            self.ids[number] = next(self.numbers)
        return self.ids[number]

    def name(self, entries: Iterable[os.DirEntry[str]]) -> Names:
        return {entry.name: self.identify(entry.inode()) for entry in entries}

    def sync(self, descriptor: int) -> None:
        own = self.identify(os.fstat(descriptor).st_ino)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_relative_to(self.root):
            return
        if path.is_dir():
            self.synced_names[own] = self.name(os.scandir(path))
        else:
            self.synced_contents[own] = path.read_bytes()

    @contextmanager
    def record(self) -> Iterator[pytest.MonkeyPatch]:
        """Watch the calls by which Python code syncs, names and removes; nothing is really synced."""
        self.synced_names[self.identify(os.stat(self.root).st_ino)] = {}
        self.look()

        with pytest.MonkeyPatch.context() as patch:

            def watch(name: str) -> None:
                real: Callable[..., Any] = getattr(os, name)

                def call(*args: Any, **how: Any) -> Any:
                    with self.lock:
                        self.look()
                        result = None
                        if name == "fsync":
                            self.sync(args[0])
                        else:
                            result = real(*args, **how)
                        self.look()
                        return result

                patch.setattr(os, name, call)

            for name in ("fsync", "replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir"):
                watch(name)
            yield patch
        self.look()

    def iter_crashes(self, target: Path, *, choices: int = 1) -> Iterator[tuple[Path, Moment]]:
        """Yield folders as they are after a crash at every moment, with the moment; each replaces the one before."""
        top = self.identify(os.stat(self.root).st_ino)
        for number, moment in enumerate(self.moments):
            for choice in range(2 + choices):
                random = Random(f"{number} {choice}")
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir(parents=True)
                fixed = {0: 0.0, 1: 1.0}.get(choice, 0.5)
                keep = partial(_draw, random, fixed)
                _build(moment, top, target, keep, keep_bytes=choice > 1)
                yield target, moment


def _draw(random: Random, probability: float) -> bool:
    return random.random() < probability


def _build(moment: Moment, folder: Inode, target: Path, keep: Callable[[], bool], *, keep_bytes: bool) -> None:
    """Write what the disk has of a folder; `keep` decides on each folder's names and, if allowed, each file's bytes."""
    before = moment.synced_names.get(folder, {})
    for name, inode in (moment.names.get(folder, before) if keep() else before).items():
        if inode in moment.names or inode in moment.synced_names:
            (target / name).mkdir()
            _build(moment, inode, target / name, keep, keep_bytes=keep_bytes)
        else:
            synced = moment.synced_contents.get(inode, b"")
            now = moment.contents.get(inode, synced)
            (target / name).write_bytes(now if keep_bytes and keep() else synced)
