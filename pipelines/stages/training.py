"""What the stages that train have in common: from a definition and its settings to the trained artifact."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.data.dataset import open_dataset
from pipelines.evaluate import plots
from pipelines.registry.gate_verdict import warn_of_verdict
from pipelines.stages.runner import StageContext, run_stage
from pipelines.tracking.client import open_tracker
from pipelines.train.ray_train import launch_training
from pipelines.train.resume import ResumeOptions
from pipelines.train.spec import TrainingDefinition, TrainSpec
from pipelines.train.step_flops import row_flops
from pipelines.train.sweep_hook import Trial
from presto_core.artifacts.manifest import Artifact
from presto_core.config.stage import TrainingStage


def run_training(
    stage: TrainingDefinition,
    config: TrainingStage,
    resume: ResumeOptions = ResumeOptions(),
    trial: Trial | None = None,
    *,
    more_plots: dict[str, Callable[[], bytes]] | None = None,
) -> Artifact:
    """Train to the end, resume an interrupted run, or reuse a finished one.

    Args:
        more_plots: file name -> plot beside losses.png.

    Raises:
        UserError: parents unknown or not made for each other, cluster too small, divergence, storage full, ...
    """

    def execute(ctx: StageContext) -> None:
        stage.check(ctx.config, ctx.parents)
        if "teacher" in ctx.parents and not trial:
            warn_of_verdict(open_tracker(config.tracking).client, ctx.parents["teacher"])
        launch_training(make_spec(stage, ctx.config, ctx), ctx.run, ctx.trial)
        metrics = stage.plotted_metrics
        losses = {"losses.png": lambda: plots.plot_losses({name: ctx.run.read_history(name) for name in metrics})}
        ctx.save_plots(losses | (more_plots or {}))

    return run_stage(
        stage.name, config, execute, register_as=config.name, resume=resume, trial=trial, settle=stage.settle
    )


def make_spec(stage: TrainingDefinition, config: TrainingStage, ctx: StageContext) -> TrainSpec:
    """What workers need to take part in this run."""
    dataset_uri = ctx.parents["dataset"].uri
    models = {role: artifact for role, artifact in ctx.parents.items() if role != "dataset"}
    card = stage.make_card(config, models, open_dataset(dataset_uri))
    return TrainSpec(
        stage=stage,
        config=config,
        models=models,
        run_id=ctx.run_id,
        dataset_uri=dataset_uri,
        scratch_uri=ctx.scratch.uri,
        artifact_uri=ctx.artifact.uri,
        parent_ids=ctx.parent_ids,
        fence=ctx.fence,
        row_flops=row_flops(config, card.to_dict(), layered=card.budget is not None),
    )
