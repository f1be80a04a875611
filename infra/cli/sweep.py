"""`presto sweep [PRESET] …`, `presto sweep report`, `presto sweep spaces`: search the settings of a stage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from pydantic import create_model

from infra.cli.dispatch import dispatch
from infra.cli.groups import SweepGroup
from infra.cli.options import WAIT_SETTING, On, StageArgs, Wait, add_dry_run
from infra.jobs.command import StageCommand
from infra.jobs.targets import LOCAL
from pipelines.console import print_table, print_text
from pipelines.presets.resolve import load_stage_config
from presto_core.config.schema import SweepStage
from presto_core.config.stage import StageConfig
from presto_core.config.sweep import SweepConfig

if TYPE_CHECKING:
    from pipelines.sweep.plan import SweepPlan

FIRST = 5  # configurations that --dry-run prints

app = typer.Typer(
    cls=SweepGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help=(
        "Search the settings of a stage: which are best, and how certain that is.\n\n"
        "[bold]presto sweep PRESET …[/bold] runs a sweep (run is the default command): "
        "[bold]presto sweep sweeps/demo[/bold], or [bold]presto sweep demo --space noise --space losses --samples 32 "
        "validation.every=5[/bold]. Re-run the same command to resume it."
    ),
)
Spaces = Annotated[list[str] | None, typer.Option("--space", help="A predefined space; repeat to combine several.")]


@app.command()
def run(
    args: StageArgs = None,
    space: Spaces = None,
    samples: Annotated[int | None, typer.Option(help="Number of trials (sweep.samples).", show_default=False)] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="mmd, fd, blocks_run or latency_ms; can be repeated; the first ranks trials (sweep.metrics)."
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Whether the first metric is minimized or maximized: min or max (sweep.mode).", show_default=False
        ),
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="How settings are searched: random, grid or optuna (sweep.search).")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="How trials are stopped early: asha, median or none (sweep.scheduler).")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed trials again.")] = False,
    wait: Wait = False,
    step_seconds: Annotated[
        float | None,
        typer.Option(
            help="Seconds per training step, from which --dry-run computes the cost.", min=0, show_default=False
        ),
    ] = None,
    on: On = LOCAL,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the first configurations and the total cost, and stop.")
    ] = False,
) -> None:
    """Run a sweep, resume an interrupted one, or show the result of a finished one."""
    sweep_settings = {"spaces": space, "samples": samples, "metrics": metric, "mode": mode, "search": search}
    sweep_settings |= {"scheduler": scheduler}
    options = [f"sweep.{name}={json.dumps(value)}" for name, value in sweep_settings.items() if value is not None]
    options += [WAIT_SETTING] if wait else []
    from pipelines.cluster.resources import check_fits_locally
    from pipelines.sweep.plan import make_plan

    plan = make_plan([*(args or []), *options])
    if on == LOCAL:
        check_fits_locally(plan.base.cluster)
        if dry_run:
            _show_plan(plan, step_seconds)
            return

    def run() -> None:
        from pipelines.sweep import runner as sweep

        sweep.run(plan, retry=retry)

    command = StageCommand("sweep", plan_to_config(plan), execute=run, more_options=("--retry",) if retry else ())
    dispatch(command, on=on, dry_run=dry_run)


def plan_to_config(plan: SweepPlan) -> StageConfig:
    """Return a plan as one configuration, to send to a job: read as a preset, it gives the same plan."""
    sweep: SweepConfig = plan.sweep.sweep.model_copy(update={"depth": plan.depth})
    both = create_model("SweptStage", __base__=type(plan.base), sweep=(SweepConfig, sweep))
    return cast(StageConfig, both.model_validate(plan.base.model_dump() | {"sweep": sweep.model_dump()}))


@app.command()
@add_dry_run
def report(
    sweep: Annotated[str, typer.Argument(metavar="[ID]", help="Sweep id; default: list the sweeps.")] = "",
    args: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="storage.root=...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print a sweep's table and verdict from the trials recorded so far, and write its page."""
    from pipelines.storage.filesystem import absolute_uri, open_folder

    given = [*([sweep] if "=" in sweep else []), *(args or [])]
    config = load_stage_config("sweep", given, takes_preset=False)
    root = open_folder(absolute_uri(config.storage.root), setting="storage.root")
    if not sweep or "=" in sweep:
        known = root.child("sweeps").list_folders()
        hint = "show one with: presto sweep report ID" if known else "run one with: presto sweep sweeps/demo"
        print_text(f"sweeps in {root.uri}: {', '.join(known) or 'none yet'}; {hint}")
        return
    from pipelines.sweep import report as sweep_report
    from pipelines.sweep.analysis import analyze
    from pipelines.sweep.store import SweepStore, sweep_folder

    records = SweepStore(sweep_folder(root, sweep))
    result = analyze(records.read_definition(), records.load_all().values(), records.add_sessions([]))
    sweep_report.write(result)
    if as_json:
        print_text(sweep_report.to_json(result).decode())
    else:
        sweep_report.show(result)


@app.command()
@add_dry_run
def spaces(
    depth: Annotated[int, typer.Option(help="Number of transformer blocks, for layer budgets.", min=1)] = 8,
) -> None:
    """List the predefined spaces and their domains."""
    from tune_spaces.spaces import SPACES

    rows = [[name, key, _format_domain(d)] for name, space in SPACES.items() for key, d in space(depth).items()]
    print_table("spaces", ("space", "setting", "domain"), rows)


def _show_plan(plan: SweepPlan, step_seconds: float | None) -> None:
    """Print the first configurations and the cost, as comments and `key=value` arguments."""
    from tune_spaces.domains import to_overrides

    sweep: SweepConfig = plan.sweep.sweep
    assert isinstance(plan.sweep, SweepStage)
    steps = plan.base.total_steps
    validations = -(-plan.base.updates // plan.base.validation.every)
    print_text(f"# presto sweep of {sweep.stage}: {sweep.search} search, scheduler {sweep.scheduler}")
    print_text(f"# {plan.metric}, {sweep.mode}, every {plan.base.validation.every} of {plan.base.updates} updates")
    print_text(f"# over {', '.join(plan.space)}")
    repeats = 2 * sweep.repeats
    print_text(f"# at most {plan.num_trials} trials, and {repeats} repeats of winner and preset with other seeds")
    total = (plan.num_trials + repeats) * steps
    print_text(f"# a full trial is {steps} steps and {validations} validations: at most {total} steps in total")
    if step_seconds is None:
        print_text("# time: pass --step-seconds, which every run of the stage logs as step_seconds")
    else:
        print_text(f"# time: at most {total * step_seconds / 3600:.2g} h of training, divided by the trials at a time")
    if sweep.search == "optuna":
        print_text("# later proposals depend on earlier results; these are random")
    for number, proposal in zip(range(FIRST), plan.iter_proposals()):
        print_text(f"{number}: {' '.join(to_overrides(proposal.settings)) or '(the settings of the preset)'}")


def _format_domain(domain: Any) -> str:
    from tune_spaces.domains import Choice, Conditional

    if isinstance(domain, Conditional):
        kinds = ({k: _format_domain(d) for k, d in inner.items()} for inner in domain.options.values())
        return "; ".join(
            f"{kind}: {', '.join(f'{k} {text}' for k, text in inner.items())}"
            for kind, inner in zip(domain.options, kinds)
        )
    if isinstance(domain, Choice):
        return ", ".join(json.dumps(v) for v in domain.values)
    return f"{domain.low:g} to {domain.high:g}" + (", log" if domain.log else "")
