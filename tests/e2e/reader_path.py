"""How far it is from README to a distilled teacher of one's own: `python -m tests.e2e.reader_path` counts it.

Per page that a reader reads on the way: its words without code and tables of figures, its commands, and who runs them.
"""

from __future__ import annotations

import re
from collections import Counter

from tests.e2e.page_commands import BLOCK, MENTION, ROOT, read_commands

# where a reader wants to go -> what is read on the way, in this order
PATHS = {
    "a teacher trained on your music, distilled": (
        "README.md",
        "docs/quickstart.md#one-command-per-stage",
        "docs/tutorials/own_music.md",
        "docs/tutorials/own_teacher.md",
    ),
    "a teacher that you have, distilled": ("README.md", "docs/own_teacher.md"),
    "the package's teacher, distilled on your music": ("README.md", "docs/tutorials/own_music.md"),
}


def read_page(page: str) -> str:
    """Return the text of a page, or up to the end of the section that `page#anchor` names."""
    name, _, anchor = page.partition("#")
    text = (ROOT / name).read_text(encoding="utf-8")
    if anchor:
        parts = re.split(r"(?m)^(?=## )", text)
        titles = [re.sub(r"[^a-z0-9]+", "-", part.splitlines()[0].lower()).strip("-") for part in parts]
        text = "".join(parts[: titles.index(anchor) + 1])
    return text


def count_words(text: str) -> int:
    """Words of prose: without blocks, tables, links' targets and marks."""
    prose = re.sub(r"(?m)^\|.*$|<!--.*?-->|\]\([^)]*\)", " ", BLOCK.sub("", text))
    return len(re.findall(r"\w[\w'’.-]*", prose))


def main() -> None:
    for goal, pages in PATHS.items():
        rows = []
        for page in pages:
            text = read_page(page)
            commands = [c for c in read_commands(text, page.partition("#")[0]) if c.kind != MENTION]
            rows.append((page, count_words(text), Counter(command.kind for command in commands)))
        words = sum(row[1] for row in rows)
        print(f"{goal}: {len(rows)} pages, {words} words, {sum(row[2].total() for row in rows)} commands")
        for page, count, kinds in rows:
            print(f"  {page}: {count} words; {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}")


if __name__ == "__main__":
    main()
