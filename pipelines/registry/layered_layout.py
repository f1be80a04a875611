"""Positions of a directed graph's boxes and edges in layers (Sugiyama, Tagawa, Toda 1981): nothing overlaps.

An edge's label is a box of a layer between those of its ends, and an edge keeps a column free in each layer it passes.
So it is enough that the boxes of one layer do not overlap: edges are vertical in a layer, and slanted between layers.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

ARROW = 8.0  # an edge is vertical for the length of its head; less than any gap_y
SWEEPS = 8  # down and up, over all layers, each for the order and for the positions


@dataclass(frozen=True)
class Size:
    width: float
    height: float


@dataclass
class Box:
    """A rectangle by its centre column and its top."""

    size: Size
    x: float = 0.0
    top: float = 0.0

    @property
    def x_min(self) -> float:
        return self.x - self.size.width / 2

    @property
    def x_max(self) -> float:
        return self.x + self.size.width / 2

    @property
    def y_max(self) -> float:
        return self.top + self.size.height


@dataclass(frozen=True)
class Edge:
    """An edge from a box above to one below, with the size of its label."""

    start: str
    end: str
    label: str
    label_size: Size


@dataclass(frozen=True)
class EdgeRoute:
    """Where an edge runs: corners from the bottom of its start to the top of its end, and the box of its label."""

    edge: Edge
    points: list[tuple[float, float]]
    label: Box


@dataclass
class Layout:
    boxes: dict[str, Box]
    routes: list[EdgeRoute]
    width: float
    height: float


@dataclass
class _Layers:
    """All boxes in layers, those of labels and passing edges included; `above` and `below` are neighbours."""

    boxes: dict[Hashable, Box]
    rows: list[list[Hashable]]
    above: dict[Hashable, list[Hashable]] = field(default_factory=dict)
    below: dict[Hashable, list[Hashable]] = field(default_factory=dict)
    chains: list[list[Hashable]] = field(default_factory=list)


def arrange(sizes: Mapping[str, Size], edges: Sequence[Edge], *, gap_x: float, gap_y: float) -> Layout:
    """Place boxes in layers, each below all that lead to it, so that neither boxes nor labels overlap.

    Args:
        sizes: of each box, by its name.
        edges: without circles; several may have the same ends.
        gap_x, gap_y: least distance of two boxes of a layer, and of two layers.
    """
    layers = _make_layers(sizes, edges)
    _order_rows(layers)
    _set_columns(layers, gap_x)
    bottoms = _set_rows(layers, gap_y)
    boxes = {name: layers.boxes[name] for name in sizes}
    routes = [_make_route(edge, chain, layers, bottoms) for edge, chain in zip(edges, layers.chains)]
    width = max((box.x_max for box in layers.boxes.values()), default=0.0)
    return Layout(boxes, routes, width, max((bottom for _, bottom in bottoms), default=0.0))


def _make_layers(sizes: Mapping[str, Size], edges: Sequence[Edge]) -> _Layers:
    """Boxes go to even layers by the longest path that leads to them, labels to odd ones right above the end."""
    rank = {name: 2 * depth for name, depth in _count_depths(sizes, edges).items()}
    layers = _Layers({name: Box(size) for name, size in sizes.items()}, [[] for _ in range(max(rank.values()) + 1)])
    for name in sizes:
        layers.rows[rank[name]].append(name)
    for number, edge in enumerate(edges):
        inner: list[Hashable] = [(number, row) for row in range(rank[edge.start] + 1, rank[edge.end])]
        for node, row in zip(inner, range(rank[edge.start] + 1, rank[edge.end])):
            layers.boxes[node] = Box(edge.label_size if node == inner[-1] else Size(1, 0))
            layers.rows[row].append(node)
        chain = [edge.start, *inner, edge.end]
        layers.chains.append(chain)
        for upper, lower in zip(chain, chain[1:]):
            layers.below.setdefault(upper, []).append(lower)
            layers.above.setdefault(lower, []).append(upper)
    return layers


def _count_depths(sizes: Mapping[str, Size], edges: Sequence[Edge]) -> dict[str, int]:
    """Edges of the longest path that leads to each box."""
    depths = dict.fromkeys(sizes, 0)
    for _ in sizes:
        for edge in edges:
            depths[edge.end] = max(depths[edge.end], depths[edge.start] + 1)
    return depths


def _order_rows(layers: _Layers) -> None:
    """Order each layer by the mean position of its neighbours, which leaves few crossings."""
    for _ in range(SWEEPS):
        for rows, neighbours in ((layers.rows, layers.above), (layers.rows[::-1], layers.below)):
            for before, row in zip(rows, rows[1:]):
                _order_row(row, before, neighbours)


def _order_row(row: list[Hashable], before: list[Hashable], neighbours: Mapping[Hashable, list[Hashable]]) -> None:
    position = {node: i / max(len(before) - 1, 1) for i, node in enumerate(before)}
    own = {node: i / max(len(row) - 1, 1) for i, node in enumerate(row)}
    row.sort(key=lambda node: fmean([position[other] for other in neighbours.get(node, ())] or [own[node]]))


def _set_columns(layers: _Layers, gap_x: float) -> None:
    """Move each box as near to its neighbours' columns as the order and the gaps allow; the leftmost edge is 0."""
    for row in layers.rows:
        _spread(layers, row, dict.fromkeys(row, 0.0), gap_x)
    for _ in range(SWEEPS):
        for rows, neighbours in ((layers.rows, layers.above), (layers.rows[::-1], layers.below)):
            for row in rows:
                wanted = {n: fmean([layers.boxes[m].x for m in neighbours.get(n, [n])]) for n in row}
                _spread(layers, row, wanted, gap_x)
    leftmost = min((box.x_min for box in layers.boxes.values()), default=0.0)
    for box in layers.boxes.values():
        box.x -= leftmost


def _spread(layers: _Layers, row: list[Hashable], wanted: dict[Hashable, float], gap_x: float) -> None:
    """Set the columns of a layer: least squares to the wanted ones, subject to the order and the gaps.

    With the offset of each box in a packed layer taken off, this is isotonic regression: pool adjacent violators.
    """
    offsets, offset = [], 0.0
    for number, node in enumerate(row):
        half = layers.boxes[node].size.width / 2
        offset += half + (gap_x + layers.boxes[row[number - 1]].size.width / 2 if number else 0.0)
        offsets.append(offset)
    pools: list[list[float]] = []
    for node, taken_off in zip(row, offsets):
        pools.append([wanted[node] - taken_off])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    values = [fmean(pool) for pool in pools for _ in pool]
    for node, value, taken_off in zip(row, values, offsets):
        layers.boxes[node].x = value + taken_off


def _set_rows(layers: _Layers, gap_y: float) -> list[tuple[float, float]]:
    """Set the tops, each box in the middle of its layer; return top and bottom of each layer."""
    limits, top = [], 0.0
    for row in layers.rows:
        height = max((layers.boxes[node].size.height for node in row), default=0.0)
        for node in row:
            layers.boxes[node].top = top + (height - layers.boxes[node].size.height) / 2
        limits.append((top, top + height))
        top += height + gap_y
    return limits


def _make_route(edge: Edge, chain: list[Hashable], layers: _Layers, limits: list[tuple[float, float]]) -> EdgeRoute:
    """Vertical through each layer, in a column of its own at both ends."""
    start, end = layers.boxes[chain[0]], layers.boxes[chain[-1]]
    row_of = {node: number for number, row in enumerate(layers.rows) for node in row if node in chain}
    x_start = _find_port(layers, chain[0], chain[1], layers.below)
    x_end = _find_port(layers, chain[-1], chain[-2], layers.above)
    points = [(x_start, start.y_max), (x_start, limits[row_of[chain[0]]][1])]
    for node in chain[1:-1]:
        top, bottom = limits[row_of[node]]
        points += [(layers.boxes[node].x, top), (layers.boxes[node].x, bottom)]
    points += [(x_end, limits[row_of[chain[-1]]][0] - ARROW), (x_end, end.top)]
    return EdgeRoute(edge, list(dict.fromkeys(points)), layers.boxes[chain[-2]])


def _find_port(
    layers: _Layers, node: Hashable, neighbour: Hashable, neighbours: Mapping[Hashable, list[Hashable]]
) -> float:
    """Column at which an edge meets a box: edges share its middle half, in the order of their other ends."""
    others = sorted(neighbours[node], key=lambda other: layers.boxes[other].x)
    box = layers.boxes[node]
    share = (others.index(neighbour) + 1) / (len(others) + 1) - 0.5
    return box.x + share * box.size.width / 2
