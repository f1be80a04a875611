"""Lineage of a version up to the data, as a text tree and as an SVG graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from rich.tree import Tree

from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.names import HASH_DIGITS
from presto_core.metrics.table import headline_metric
from presto_core.models.pretrained import SCHEME, find_export_of, make_pretrained_uri

if TYPE_CHECKING:  # the command line starts without torch and numpy
    from presto_core.artifacts.manifest import Artifact

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 250, 62, 30, 46, 16


@dataclass
class LineageGraph:
    """A version and its ancestors.

    Attributes:
        start: artifact id of the version.
        versions: by artifact id, without ancestors that are not registered.
        pretrained: artifact id -> ancestor that comes with the package.
        parents: artifact id -> role -> artifact id.
    """

    start: str
    versions: dict[str, Version] = field(default_factory=dict)
    pretrained: dict[str, Artifact] = field(default_factory=dict)
    parents: dict[str, dict[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the form for --json."""
        nodes = [
            {"id": node, "version": self.versions[node].to_dict() if node in self.versions else None}
            | ({"pretrained": self.pretrained[node].uri} if node in self.pretrained else {})
            for node in self.parents
        ]
        edges = [{"from": p, "to": n, "role": r} for n, roles in self.parents.items() for r, p in roles.items()]
        return {"start": self.start, "nodes": nodes, "edges": edges}

    def depth(self, node: str) -> int:
        """Return 0 for a node without parents, else one more than its deepest parent."""
        return 1 + max((self.depth(p) for p in self.parents.get(node, {}).values()), default=-1)


def trace_lineage(catalog: Catalog, version: Version) -> LineageGraph:
    """Follow the parents that the registry and the manifests of the package's models record."""
    from pipelines.storage.filesystem import open_folder
    from presto_core.artifacts.manifest import read_artifact

    graph = LineageGraph(version.artifact_id, {version.artifact_id: version})
    queue = [version.artifact_id]
    while queue:
        node = queue.pop(0)
        ancestor = graph.versions.get(node)
        if ancestor is None and (name := find_export_of(node)):
            graph.pretrained[node] = read_artifact(open_folder(make_pretrained_uri(name)))
            graph.parents[node] = dict(graph.pretrained[node].manifest["parents"])
        else:
            graph.parents[node] = ancestor.parents if ancestor else {}
        unseen = [p for p in graph.parents[node].values() if p not in graph.parents and p not in queue]
        graph.versions |= {v.artifact_id: v for v in catalog.find_by_artifacts([p for p in unseen if "/" not in p])}
        queue += unseen
    return graph


def render_tree(graph: LineageGraph) -> Tree:
    """Return a tree with the version at the root and its parents below; a node is expanded once."""
    shown: set[str] = set()

    def add_branch(node: str, role: str, parent_branch: Tree | None) -> Tree:
        label = f"{role}: " if role else ""
        is_repeated = node in shown and bool(graph.parents[node])
        text = f"{label}{escape_markup(' '.join(_label_lines(graph, node)))}{' (see above)' if is_repeated else ''}"
        branch = parent_branch.add(text) if parent_branch else Tree(text)
        if not is_repeated:
            shown.add(node)
            for parent_role, parent in sorted(graph.parents[node].items()):
                add_branch(parent, parent_role, branch)
        return branch

    return add_branch(graph.start, "", None)


def render_svg(graph: LineageGraph) -> str:
    """Return a self-contained SVG, from the data at the top to the version at the bottom."""
    rows: dict[int, list[str]] = {}
    for node in graph.parents:
        rows.setdefault(graph.depth(node), []).append(node)
    corners = {
        node: (MARGIN + column * (WIDTH + GAP_X), MARGIN + row * (HEIGHT + GAP_Y))
        for row, nodes in rows.items()
        for column, node in enumerate(nodes)
    }
    width = max(x for x, _ in corners.values()) + WIDTH + MARGIN
    height = max(y for _, y in corners.values()) + HEIGHT + MARGIN
    lines = [
        _draw_edge(corners[p], corners[n], role) for n, roles in graph.parents.items() for role, p in roles.items()
    ]
    boxes = [_draw_box(corners[node], _label_lines(graph, node), start=node == graph.start) for node in graph.parents]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join([*lines, *boxes]) + "\n</svg>\n"
    )


def _label_lines(graph: LineageGraph, node: str) -> list[str]:
    """Return a node's label, in up to three short lines."""
    from pipelines.registry.compatibility import distillation_method
    from presto_core.artifacts.manifest_schema import content_hash

    version = graph.versions.get(node)
    if version is None and (artifact := graph.pretrained.get(node)):
        content = content_hash(artifact.manifest)[:HASH_DIGITS]
        return [artifact.uri.removeprefix(SCHEME), f"{distillation_method(artifact)} {content}", "(of the package)"]
    if version is None:
        return [node, "not registered"]
    lines = [version.label, f"{version.method or version.kind} {version.content[:HASH_DIGITS]}"]
    metric = headline_metric()
    value = version.measurements.get(metric.name)
    last = [*version.aliases, *([f"{metric.title} {metric.format_value(value)}"] if value is not None else [])]
    return lines + ([f"({', '.join(last)})"] if last else [])


def escape_markup(text: str) -> str:
    return text.replace("[", "\\[")


def _draw_edge(above: tuple[int, int], below: tuple[int, int], role: str) -> str:
    x1, y1, x2, y2 = above[0] + WIDTH // 2, above[1] + HEIGHT, below[0] + WIDTH // 2, below[1]
    label = f'<text x="{(x1 + x2) // 2 + 4}" y="{(y1 + y2) // 2}" fill="#666666" font-size="10">{escape(role)}</text>'
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#999999"/>{label}'


def _draw_box(corner: tuple[int, int], lines: list[str], *, start: bool) -> str:
    x, y = corner
    stroke = "#b3391f" if start else "#446688"
    text = "".join(
        f'<text x="{x + 10}" y="{y + 19 + 16 * number}">{escape(line[:38])}</text>' for number, line in enumerate(lines)
    )
    return f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#f6f8fa" stroke="{stroke}"/>{text}'
