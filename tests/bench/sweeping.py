"""`make sweep-demo`: the sweep of docs/sweeps.md and the full grid of its configurations; writes the page's figures.

`python -m tests.bench.sweeping [KEY=VALUE]...` may make it smaller, such as corpus.minutes=10 sweep.samples=6
steps.generator_updates=9.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from pipelines.sweep import plots as sweep_plots
from pipelines.sweep import report as sweep_report
from pipelines.sweep import runner as sweep
from pipelines.sweep.plan import make_plan
from pipelines.workflows.demo import load_flow_configs, run_node, start_storage
from presto_core.errors import UserError
from tune_spaces.domains import to_overrides

PAGE = Path("docs/sweeps.md")
IMAGES = Path("docs/images")
BEGIN, END = "<!-- sweep-demo: begin -->", "<!-- sweep-demo: end -->"
PRESET = "sweeps/demo"


def main(args: list[str]) -> None:
    swept = [PRESET, *(w for w in args if not _is_data_setting(w))]
    make_plan(swept)  # a mistake is found before any work
    configs = load_flow_configs(PRESET, list(filter(_is_data_setting, args)))
    root, made = start_storage(local=True), dict[str, Any]()
    for node in ("corpus", "ingest"):
        made[node] = run_node(node, configs[node], root, made)
    inputs = [f"inputs.dataset={made['ingest'].uri}"]
    stored = [*swept, f"storage.root={root}", *inputs]
    early = sweep.run(make_plan(stored))
    whole = sweep.run(make_plan([*stored, "sweep.scheduler=none", "sweep.repeats=0"]))
    figures = render_figures(early, whole, " ".join(["make sweep-demo", *args]))
    page = PAGE.read_text()
    head, tail = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n{figures}\n{END}{tail}")
    print(figures)


def _is_data_setting(arg: str) -> bool:
    return arg.partition(".")[0] in ("corpus", "ingest")


def render_figures(early: dict[str, Any], whole: dict[str, Any], command: str) -> str:
    """The figures as Markdown, and the plots beside the page."""
    best, least, saved, over = _best(early), _best(whole), early["saved"], early["overhead"]
    trials = f"{len(early['trials'])} trials of {early['updates']} updates"
    steps = (
        f"ASHA's best differs by {(best - least) / least:+.1%} from the full grid's (target: within 5 %), with "
        f"{saved['share']:.0%} of its steps (target: at most 40 %)."
    )
    beyond = (
        f"On top of training, a trial took {over['other_share']:.0%} more time (target: at most 15 %) and "
        f"{over['validation_share']:.0%} for validation; the whole sweep took {over['all_share']:.0%} more than both."
    )
    lines = [
        f"`{command}` on {os.cpu_count()} cores ({platform.machine()}), {trials}.",
        "",
        early["verdict"]["says"],
        "",
        "| | ASHA | all trained to the end |",
        "|---|---:|---:|",
        f"| best {early['metrics'][0]} of the trials | {best:.3f} | {least:.3f} |",
        f"| steps trained | {saved['steps_trained']} | {saved['steps_of_all_to_the_end']} |",
        "",
        f"{steps} {beyond}",
        "",
        f"The winner: `{' '.join(to_overrides(early['winner']['settings'])) or 'the preset itself'}`",
        "",
        *_table(early, whole),
    ]
    # effects of settings are clearer if all trials came to the end; the effect of stopping shows in the sweep only
    for name, content in (
        sweep_report.make_plots(whole) | {"learning": sweep_plots.plot_learning_curves(early)}
    ).items():
        IMAGES.mkdir(exist_ok=True)
        (IMAGES / f"sweep_{name}.png").write_bytes(content)
        lines += ["", f"![{name.replace('_', ' ')}](images/sweep_{name}.png)"]
    return "\n".join(lines)


def _best(result: dict[str, Any]) -> float:
    return float(next(row["value"] for row in result["trials"] if row["state"] == "finished"))


def _table(*results: dict[str, Any]) -> list[str]:
    """Share of variance that settings explain, where a sweep can compare all trials: one column a sweep."""
    importances = [result["importance"] for result in results]
    head = " | ".join(["share of variance explained by", *(f"after {t['update']} updates" for t in importances)])
    rows = (
        " | ".join([f"`{key}`", *(f"{t['shares'].get(key, 0.0):.2f}" for t in importances)])
        for key in importances[-1]["shares"]
    )
    return [f"| {head} |", "|---" + "|---:" * len(importances) + "|", *(f"| {row} |" for row in rows)]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"sweep-demo: {error}")
