"""The picture of a lineage: no two boxes or labels overlap, no text leaves its box, no edge runs through a box."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest

from pipelines.registry import names
from pipelines.registry.catalog import Version
from pipelines.registry.layered_layout import Box, Edge, Size, arrange
from pipelines.registry.lineage import CELL_EM, LineageGraph, render_svg, render_tree
from presto_core.metrics.table import headline_metric
from tests.support.browser import explain_missing_browser, open_page, start_browser

SVG = "{http://www.w3.org/2000/svg}"
MISSING = explain_missing_browser()
HOSTILE = (
    'a[/red]\x1b[31m <b>"model"</b> & so on, a name that is much longer than one line of a box can hold ' + "x" * 90
)


def make_graph(parents: dict[str, dict[str, str]], start: str, *, name: str = "presto-generator") -> LineageGraph:
    """A graph of registered versions, each measured with a sampler of its own; ids with a slash are not registered."""
    versions = {}
    for number, (node, roles) in enumerate(parents.items(), 1):
        tags = {names.ARTIFACT_ID: node, names.METHOD: "LS", names.CONTENT: "ab12cd34ef567890"}
        measured = {headline_metric().registry_name: "0.0125", "system": f"sampler {number}"}
        tags |= {f"{names.MEASURED}{key}": value for key, value in measured.items()}
        tags |= {f"{names.PARENT}{role}": parent for role, parent in roles.items()}
        if "/" not in node:
            versions[node] = Version(name, number, ("candidate-ls", "champion"), tags, "", 0)
    return LineageGraph(start, versions, {}, parents)


def make_random_graph(seed: int) -> LineageGraph:
    rng = random.Random(seed)
    ids = [f"n{i}" for i in range(rng.randint(2, 16))]
    parents = {}
    for i, node in enumerate(ids):
        chosen = rng.sample(ids[:i], min(i, rng.randint(1, 4)))
        parents[node] = {f"role {'of a long name ' * rng.randint(0, 2)}{j}": p for j, p in enumerate(chosen)}
    return make_graph(parents, ids[-1])


USUAL = {
    "data": {},
    "base": {"dataset": "data"},
    "l": {"teacher": "base", "dataset": "data"},
    "ls": {"teacher": "base", "layers": "l", "dataset": "data", "forked_from": "x/step-000000003"},
    "x/step-000000003": {},
}
TWICE = {"data": {}, "base": {"dataset": "data"}, "ls": {"teacher": "base", "layers": "base"}}
GRAPHS = {
    "alone": make_graph({"ls": {}}, "ls"),
    "usual": make_graph(USUAL, "ls"),
    "one parent in two roles": make_graph(TWICE, "ls"),
    "hostile names": make_graph(USUAL, "ls", name=HOSTILE),
    **{f"random {seed}": make_random_graph(seed) for seed in range(12)},
}


def read_boxes(svg: str, kind: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of the rectangles of a class."""
    found = [e for e in ET.fromstring(svg).iter(f"{SVG}rect") if e.get("class") == kind]
    corners = [[float(str(e.get(key))) for key in ("x", "y", "width", "height")] for e in found]
    return [(x, y, x + width, y + height) for x, y, width, height in corners]


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())
def test_neither_boxes_nor_labels_overlap_and_all_are_inside_the_picture(graph: LineageGraph):
    svg = render_svg(graph)
    nodes, roles = read_boxes(svg, "node"), read_boxes(svg, "role")
    assert len(nodes) == len(graph.parents)
    assert len(roles) == sum(map(len, graph.parents.values()))
    assert not [pair for pair in combinations(nodes + roles, 2) if overlap(*pair)]
    left, top, width, height = map(float, str(ET.fromstring(svg).get("viewBox")).split())
    for box in nodes + roles:
        assert left <= box[0] < box[2] <= left + width
        assert top <= box[1] < box[3] <= top + height


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())
def test_no_edge_runs_through_a_box_and_each_ends_at_one(graph: LineageGraph):
    svg = render_svg(graph)
    nodes = read_boxes(svg, "node")
    lines = [str(e.get("points")) for e in ET.fromstring(svg).iter(f"{SVG}polyline")]
    assert len(lines) == sum(map(len, graph.parents.values()))
    for line in lines:
        points = [tuple(map(float, pair.split(","))) for pair in line.split()]
        (x1, y1), (x2, y2) = points[0], points[-1]
        assert [box for box in nodes if box[0] < x1 < box[2] and y1 == pytest.approx(box[3], abs=0.11)]
        assert [box for box in nodes if box[0] < x2 < box[2] and y2 == pytest.approx(box[1], abs=0.11)]
        for (x1, y1), (x2, y2) in zip(points, points[1:]):
            inner = [(x1 + (x2 - x1) * i / 50, y1 + (y2 - y1) * i / 50) for i in range(51)]
            assert not [
                box for box in nodes for x, y in inner if box[0] < x < box[2] and box[1] + 0.2 < y < box[3] - 0.2
            ]


def test_a_box_is_below_all_that_it_was_made_from():
    svg = render_svg(GRAPHS["usual"])
    order = [e[0].get("y") for e in ET.fromstring(svg).iter(f"{SVG}g") if e[0].get("class") == "node"]
    data, base, layers, both, _ = (float(str(y)) for y in order)
    assert data < base < layers < both


def test_text_is_escaped_and_nothing_of_it_is_lost():
    svg = render_svg(GRAPHS["hostile names"])
    lines = [e.text or "" for e in ET.fromstring(svg).iter(f"{SVG}text")]
    assert "x" * 90 in "".join(lines)
    assert "\x1b" not in svg
    assert "<b>" not in svg
    assert any("<b>" in line for line in lines)


def test_a_metric_names_the_sampler_that_it_was_measured_with():
    text = " ".join(e.text or "" for e in ET.fromstring(render_svg(GRAPHS["usual"])).iter(f"{SVG}text"))
    assert f"{headline_metric().format_value(0.0125)} by sampler 4" in text


def test_the_tree_prints_a_hostile_name_as_it_is(capsys: pytest.CaptureFixture[str]):
    from pipelines.console import make_console

    make_console().print(render_tree(GRAPHS["hostile names"]))
    printed = capsys.readouterr().out
    assert "a[/red]\\x1b[31m <b>" in printed
    assert "\x1b" not in printed


def test_a_passing_edge_keeps_its_column_free():
    """An edge over three layers beside a chain through all of them."""
    sizes = {name: Size(100, 20) for name in "abcd"}
    edges = [Edge(s, e, "", Size(30, 10)) for s, e in ("ab", "bc", "cd", "ad")]
    layout = arrange(sizes, edges, gap_x=10, gap_y=5)
    passing = [x for x, _ in layout.routes[3].points[2:-2]]
    for name in "bc":
        box: Box = layout.boxes[name]
        assert all(x < box.x_min or x > box.x_max for x in passing)


@pytest.mark.browser
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_a_browser_draws_every_text_inside_its_box(tmp_path):
    with start_browser() as browser:
        for name, graph in (("usual", GRAPHS["usual"]), ("hostile", GRAPHS["hostile names"])):
            path = tmp_path / f"{name}.svg"
            path.write_text(render_svg(graph), encoding="utf-8")
            with open_page(browser, path) as page:
                outside = page.evaluate(
                    """() => [...document.querySelectorAll("g")].flatMap(g => {
                      const box = g.querySelector("rect").getBBox();
                      return [...g.querySelectorAll("text")].filter(t => {
                        const b = t.getBBox();
                        return b.x < box.x || b.x + b.width > box.x + box.width
                          || b.y < box.y - 1 || b.y + b.height > box.y + box.height + 1;
                      }).map(t => t.textContent);
                    })"""
                )
                assert outside == []
                assert page.problems == []
    assert CELL_EM < 0.7  # no reserve so large that boxes look empty
