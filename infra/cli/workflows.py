"""`presto demo` and `presto pretrain`: several stages in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.cli.options import DryRun, StageArgs
from pipelines.console import print_text
from pipelines.presets.resolve import split_preset
from pipelines.stages.dry_run import print_config

Local = Annotated[bool, typer.Option("--local", help="Keep everything in a folder instead of S3.")]


def demo(
    args: StageArgs = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train a small teacher instead of distilling the one in the package.")
    ] = False,
    local: Local = False,
    dry_run: DryRun = False,
) -> None:
    """Run the whole flow on this machine: music, latents, distillation of the shipped teacher, evaluation, sounds.

    About ten minutes on two cores. Presets: demo, or from_scratch with --from-scratch.
    """
    preset, overrides = split_preset(args or [])
    preset = preset or ("from_scratch" if from_scratch else "demo")
    from pipelines.workflows import demo as flow

    if dry_run:
        configs = flow.load_configs(preset, overrides, from_scratch=from_scratch)
        if not from_scratch:
            print_text(f"## teacher is {configs['S'].inputs.teacher}")
        for name in flow.list_nodes(from_scratch=from_scratch):
            print_text(flow.describe_node(name))
            print_config(flow.DEMO_FLOW[name].stage, configs[name])
    else:
        flow.run(preset, overrides, local=local, from_scratch=from_scratch)


def pretrain(
    args: StageArgs = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder that receives one folder per model; default: the package's own.")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Distill the teacher even if it fails its gate.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Remake the models in the package from nothing: corpus, teacher, its gate, L, S, LS, evaluation, export.

    Takes hours on two cores; uses a GPU if there is one. Re-run it to resume. Preset: presto_tiny.
    """
    preset, overrides = split_preset(args or [])
    preset = preset or "presto_tiny"
    from pipelines.workflows import demo as flow
    from pipelines.workflows import pretrained

    if dry_run:
        configs = pretrained.load_configs(preset, overrides)
        for name in pretrained.NODES:
            print_text(flow.describe_node(name, pretrained.NODES))
            print_config(flow.DEMO_FLOW[name].stage, configs[name])
    else:
        pretrained.run(preset, overrides, folder=output, anyway=anyway)
