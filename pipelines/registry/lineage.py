"""Lineage of a version up to the data, as a text tree and as an SVG graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, chop_cells
from rich.tree import Tree

from pipelines.console import make_printable
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.layered_layout import Box, Edge, EdgeRoute, Size, arrange
from pipelines.registry.names import HASH_DIGITS
from presto_core.metrics.table import headline_metric
from presto_core.models.pretrained import SCHEME, find_export_of, make_pretrained_uri

if TYPE_CHECKING:  # the command line starts without torch and numpy
    from presto_core.artifacts.manifest import Artifact

GAP_X, GAP_Y, MARGIN = 24, 18, 16
FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
FONT_SIZE, PADDING, LINE_CELLS = 12, 10, 44
ROLE_FONT_SIZE, ROLE_PADDING, ROLE_CELLS = 11, 3, 24
CELL_EM, LINE_EM = 0.62, 1.35  # of such fonts: letters are 0.55 to 0.61 em wide


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
        line = f"{label}{' '.join(_label_lines(graph, node))}{' (see above)' if is_repeated else ''}"
        branch = parent_branch.add(line) if parent_branch else Tree(line)
        if not is_repeated:
            shown.add(node)
            for parent_role, parent in sorted(graph.parents[node].items()):
                add_branch(parent, parent_role, branch)
        return branch

    return add_branch(graph.start, "", None)


def render_svg(graph: LineageGraph) -> str:
    """Return a self-contained SVG in layers, from the data at the top to the version at the bottom.

    Text is in a font whose letters have one width, and long lines are wrapped, so that all of it stays in its box.
    """
    labels = {
        node: [part for line in _label_lines(graph, node) for part in _wrap(line, LINE_CELLS)] for node in graph.parents
    }
    sizes = {node: _measure_text(lines, FONT_SIZE, PADDING) for node, lines in labels.items()}
    edges = [
        Edge(parent, node, role, _measure_text(_wrap(role, ROLE_CELLS), ROLE_FONT_SIZE, ROLE_PADDING))
        for node, roles in graph.parents.items()
        for role, parent in sorted(roles.items())
    ]
    layout = arrange(sizes, edges, gap_x=GAP_X, gap_y=GAP_Y)
    drawn = [_draw_line(route) for route in layout.routes] + [_draw_role(route) for route in layout.routes]
    drawn += [_draw_node(layout.boxes[node], labels[node], start=node == graph.start) for node in graph.parents]
    width, height = (round(length + 2 * MARGIN, 1) for length in (layout.width, layout.height))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="{-MARGIN} {-MARGIN} {width} {height}" font-family="{FONT}">\n'
        f'<rect x="{-MARGIN}" y="{-MARGIN}" width="{width}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
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
    last = [*version.aliases, *_describe_quality(version)]
    return lines + ([f"({', '.join(last)})"] if last else [])


def _describe_quality(version: Version) -> list[str]:
    """The headline metric, if a report measured it, with the system it belongs to: sampler and number of steps."""
    metric = headline_metric()
    value = version.measurements.get(metric.name)
    system = str(version.measurements.get("system", ""))
    measured_with = f" by {system}" if system else ""
    return [] if value is None else [f"{metric.title} {metric.format_value(value)}{measured_with}"]


def _wrap(line: str, cells: int) -> list[str]:
    """Cut a line into parts of at most `cells` columns, at blanks where there are any."""
    parts = [""]
    for word in make_printable(line).split(" "):
        joined = f"{parts[-1]} {word}" if parts[-1] else word
        if cell_len(joined) <= cells:
            parts[-1] = joined
            continue
        pieces = chop_cells(word, cells) or [""]
        parts = [*parts, *pieces] if parts[-1] else pieces
    return parts


def _measure_text(lines: list[str], font_size: int, padding: int) -> Size:
    width = max(map(cell_len, lines)) * CELL_EM * font_size
    return Size(round(width + 2 * padding, 1), round(len(lines) * LINE_EM * font_size + padding, 1))


def _draw_line(route: EdgeRoute) -> str:
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in route.points)
    x, y = route.points[-1]
    head = f"M{x - 4:.1f},{y - 8:.1f}L{x + 4:.1f},{y - 8:.1f}L{x:.1f},{y:.1f}Z"
    return f'<polyline points="{corners}" fill="none" stroke="#8895a3"/><path d="{head}" fill="#8895a3"/>'


def _draw_role(route: EdgeRoute) -> str:
    """The role of an edge on white ground, over its line."""
    return _draw_box(
        route.label, _wrap(route.edge.label, ROLE_CELLS), font_size=ROLE_FONT_SIZE, padding=ROLE_PADDING,
        frame='class="role" fill="#ffffff"', color="#56616d",
    )  # fmt: skip


def _draw_node(box: Box, lines: list[str], *, start: bool) -> str:
    stroke = 'stroke="#b3391f" stroke-width="2"' if start else 'stroke="#446688"'
    frame = f'class="node" rx="6" fill="#f6f8fa" {stroke}'
    return _draw_box(box, lines, font_size=FONT_SIZE, padding=PADDING, frame=frame, color="#1c2126")


def _draw_box(box: Box, lines: list[str], *, font_size: int, padding: int, frame: str, color: str) -> str:
    text = "".join(
        f'<text x="{box.x_min + padding:.1f}" y="{box.top + padding / 2 + (number + 0.75) * LINE_EM * font_size:.1f}" '
        f'font-size="{font_size}" fill="{color}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    size = f'x="{box.x_min:.1f}" y="{box.top:.1f}" width="{box.size.width:.1f}" height="{box.size.height:.1f}"'
    return f"<g><rect {size} {frame}/>{text}</g>"
