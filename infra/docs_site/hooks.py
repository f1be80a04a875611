"""Hooks of MkDocs: README is the index, files beside docs/ become pages, reference pages are generated from the code.

Links between the files are written so that they work in the repository; here they are turned into those of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.docs_site.commands import describe_commands
from infra.docs_site.configuration import describe_configuration
from infra.docs_site.metrics import describe_metrics

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
# files of the repository's root -> their page
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security_policy.md",
}
GENERATED = {
    "reference/configuration.md": describe_configuration,
    "reference/commands.md": describe_commands,
    "reference/metrics.md": describe_metrics,
}
_LINK = re.compile(r"(?<=\])\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        if (ROOT / name).exists():
            files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for page, describe in GENERATED.items():
        files.append(File.generated(config, page, content=describe()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links of the repository into links of the site."""
    source = page.file.src_uri
    origin = next((name for name, target in PAGES.items() if target == source), f"docs/{source}")
    return turn_links(markdown, origin=origin, page=source)


def turn_links(markdown: str, *, origin: str, page: str) -> str:
    """Replace the relative links of a file of the repository by those of its page; what has no page stays as its text.

    Args:
        origin: path of the file in the repository.
        page: path of its page below docs/.
    """

    def replace(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = (ROOT / origin).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
        known = PAGES.get(path) if (ROOT / path).is_file() else None
        known = known or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if known is None:
            return ""
        depth = page.count("/")
        return f"({'../' * depth}{known}{anchor})"

    return _LINK.sub(replace, markdown)
