"""The sizing table of docs/platform.md: `python -m infra.planning.sizing_table` regenerates it."""

from __future__ import annotations

from pathlib import Path

from infra.planning.planner import estimate_stages, make_plan_request, make_specs_model_fn
from pipelines.train.device_specs import device_by_key

PAGE = Path("docs/platform.md")
BEGIN, END = "<!-- sizing: made by python -m infra.planning.sizing_table -->", "<!-- end of sizing -->"
ROWS = (
    ("laptop", "l4", 1),
    ("laptop", "a100", 1),
    ("paper", "a100", 8),
    ("paper", "h100", 8),
    ("paper", "h100", 32),
    ("paper", "h200", 8),
)
HEAD = (
    "| preset | on | stage | GiB/GPU | rows/s | ms/step | hours | USD |",
    "|---|---|---|---:|---:|---:|---:|---:|",
)


def make_table() -> list[str]:
    """Return Markdown lines, one row per preset, device and stage."""
    lines = [*HEAD]
    for preset, device, gpus in ROWS:
        request = make_plan_request(preset, [], gpus=gpus, device=device_by_key(device), node_gbit=400, price=None)
        for o in estimate_stages(request, make_specs_model_fn(request)):
            cells = [preset, f"{gpus} x {device}", o.name, f"{o.memory.total:.1f}" + ("" if o.fits else " (too much)")]
            cells += [
                f"{o.samples_per_second:.0f}",
                f"{1e3 * o.step.total:.0f}",
                f"{o.hours:.2g}",
                f"{o.cost_usd:.2f}" if o.cost_usd < 10 else f"{o.cost_usd:.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def replace_table(page: str) -> str:
    """Return the page with its table regenerated."""
    before, rest = page.split(BEGIN)
    return before + "\n".join([BEGIN, *make_table(), END]) + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(replace_table(PAGE.read_text()))
