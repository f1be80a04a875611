"""`presto listening-test build REPORT` and `score FILES...`: a blind test for people, and what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.options import AsJson, Preview, RegistryArgs, add_dry_run
from infra.cli.report import ReportName, check_report_findable, find_stored_report

if TYPE_CHECKING:
    from pipelines.evaluate.listening.build import ListeningTest

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help=(
        "Blind listening tests of a report's clips.\n\n"
        "[bold]build REPORT[/bold] writes one HTML page for all raters, and its key. Raters open the page and send you "
        "their answers, a file each; [bold]score FILES...[/bold] screens the raters and prints preferences or ratings "
        "with intervals."
    ),
)


@app.command()
def build(
    report: ReportName,
    settings: RegistryArgs = None,
    kind: Annotated[
        str, typer.Option(help="pairs: A/B preference; mushra: ratings with a hidden reference and a low anchor.")
    ] = "pairs",
    systems: Annotated[
        list[str] | None,
        typer.Option(
            help="Systems to compare, e.g. 'teacher dpmpp_2m 40, S 4, LS 4'; default: each model's best by validation, "
            "and folders."
        ),
    ] = None,
    reference: Annotated[str, typer.Option(help="The system that is the reference; default: real music.")] = "",
    question: Annotated[
        list[str] | None,
        typer.Option(help="pairs: quality or prompt; repeat the option to ask both. Default: quality."),
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Most prompts to use; default: as many as the report has, up to 8.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=0, help="pairs: number of trials that are shown twice, with sides swapped.")
    ] = 4,
    catches: Annotated[
        int,
        typer.Option(min=0, help="pairs: number of trials against a low-pass copy, to screen raters; use 5 or more."),
    ] = 8,
    title: Annotated[str, typer.Option(help="Heading that raters see; name no system in it.")] = "Listening test",
    out: Annotated[Path, typer.Option(help="File of the page; its key is written next to it.")] = Path(
        "listening-test.html"
    ),
    seed: Annotated[int, typer.Option(help="Seed of ids and orders; the same report and seed give the same page.")] = 0,
    dry_run: Preview = False,
) -> None:
    """Write a blind test of a report's clips as one self-contained page, and the key that resolves its answers."""
    _parse_kind(kind)
    check_report_findable(report, settings or [])
    from pipelines.console import console
    from pipelines.evaluate.listening.build import TestOptions, design_test, write_test

    options = TestOptions(
        _parse_kind(kind), tuple(systems or ()), reference, tuple(question or ("quality",)),
        prompts=prompts, repeats=repeats, catches=catches, seed=seed, title=title,
    )  # fmt: skip
    test = design_test(_find_report(report, settings or []), options)
    _print_design(test)
    if dry_run:
        console.print(f"would write {out} and {out.with_suffix('.key.json')}", markup=False)
        return
    key = write_test(test, out)
    console.print(f"page for raters: {out} ({out.stat().st_size / 1e6:.1f} MB)", markup=False)
    console.print(f"key, not for raters: {key}; score answers with: presto listening-test score FILES", markup=False)


@app.command()
@add_dry_run
def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Answers, one file per rater.")],
    key: Annotated[
        Path | None,
        typer.Option(help="Key file; default: the *.key.json of this test next to the answers or in this folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Screen the raters, and print preferences (Bradley-Terry) or mean ratings (MUSHRA) with 95 % intervals."""
    from pipelines.console import print_text
    from pipelines.evaluate.listening.answers import find_key, parse_answers, read_key
    from pipelines.evaluate.listening.score import score_files

    tests = {parse_answers(path).test for path in files}  # first: a missing file is named before a missing key
    result = score_files(files, read_key(key or find_key(files, tests)))
    if as_json:
        print_text(json.dumps(result, indent=2))
    else:
        _print_result(result)


def _parse_kind(kind: str) -> Any:
    from presto_core.config.loader import ConfigError

    if kind not in ("pairs", "mushra"):
        raise ConfigError(f"--kind {kind!r} is unknown; choose pairs or mushra")
    return kind


def _find_report(report: str, settings: list[str]) -> Path:
    """The folder itself, or the local copy of the report of this id or name."""
    if (Path(report) / "report.json").is_file():
        return Path(report)
    from pipelines.evaluate.page.fetch import fetch_report

    return fetch_report(find_stored_report(report, settings))


def _print_design(test: ListeningTest) -> None:
    from pipelines.console import console

    design = test.design
    purposes = [trial.purpose for trial in design.trials]
    special = ", ".join(f"{purposes.count(p)} {p}" for p in ("repeat", "catch") if p in purposes)
    lines = [
        f"listening test {design.id} ({design.kind}) of report {design.report}",
        f"systems: {', '.join(design.systems)}" + (f"; reference: {design.reference}" if design.reference else ""),
        f"{len(design.captions)} prompts, {len(design.trials)} trials{f' ({special})' if special else ''}",
        f"{len(design.clips)} clips, about {design.minutes:.0f} minutes per rater",
        *(f"note: {note}" for note in test.notes),
    ]
    for line in lines:
        console.print(line, markup=False)


def _print_result(result: dict[str, Any]) -> None:
    from pipelines.console import print_table, print_text

    raters = [
        [r["rater"][:24], "yes" if r["is_kept"] else "no", str(r["answered"]), f"{r['checks_passed']}/{r['checks']}"]
        + ([f"{r['repeats_equal']}/{r['repeats']}"] if result["kind"] == "pairs" else [])
        for r in result["raters"]
    ]
    checks = ("catches", "repeats equal") if result["kind"] == "pairs" else ("reference found",)
    print_table(f"raters of test {result['test']}", ("rater", "counts", "trials", *checks), raters)
    for question, rows in result["results"].items():
        columns, cells = _format_ratings(rows) if result["kind"] == "mushra" else _format_preferences(rows)
        kept = sum(r["is_kept"] for r in result["raters"])
        print_table(f"{question}: {kept} raters, {result['prompts']} prompts, 95 % intervals", columns, cells)
    for note in result["notes"]:
        print_text(f"note: {note}")


def _format_preferences(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    columns = ("system", "preferred %", "log-odds", "won-tied-lost")
    return columns, [
        [
            row["system"],
            _format(row["preference"], row["preference_interval"], scale=100, digits=0),
            _format(row["strength"], row["strength_interval"], scale=1, digits=2),
            f"{row['wins']}-{row['ties']}-{row['losses']}",
        ]
        for row in rows
    ]


def _format_ratings(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    columns = ("system", "mean", "median", "ratings")
    return columns, [
        [row["system"], _format(row["mean"], row["mean_interval"], scale=1, digits=1), f"{row['median']:.0f}",
         str(row["ratings"])]
        for row in rows
    ]  # fmt: skip


def _format(value: float, interval: list[float] | None, *, scale: float, digits: int) -> str:
    text = f"{scale * value:.{digits}f}"
    if interval is None:
        return text
    low, high = (scale * bound for bound in interval)
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
