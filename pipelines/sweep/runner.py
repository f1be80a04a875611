"""Run a sweep: trials by Ray Tune, their records, repeats of winner and preset, and the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pipelines.cluster.device import check_reserved
from pipelines.cluster.resources import TrialResources, check_fits, max_concurrent_trials
from pipelines.cluster.session import ray_session
from pipelines.cluster.shutdown import sigterm_as_interrupt
from pipelines.console import console
from pipelines.evaluate.validator import get_validator_actor
from pipelines.inference.lazy_mlflow import save_mlflow_model
from pipelines.registry.publish import publish
from pipelines.registry.resolve import resolve
from pipelines.stages.distill_steps import settle
from pipelines.storage.filesystem import absolute_uri, open_folder
from pipelines.storage.lease import LeaseHeldError, hold_lease
from pipelines.storage.node_cache import cache_on_node
from pipelines.sweep import preflight
from pipelines.sweep import report as sweep_report
from pipelines.sweep.analysis import analyze, make_definition, rank
from pipelines.sweep.callback import SweepCallback
from pipelines.sweep.environment import ENVIRONMENT
from pipelines.sweep.plan import Proposal, SweepPlan
from pipelines.sweep.store import (
    DEFAULT,
    FAILED,
    FINISHED,
    PRUNED,
    RESULT,
    TRIAL,
    WINNER,
    SweepStore,
    TrialRecord,
    sweep_folder,
)
from pipelines.sweep.tune import run_trials
from pipelines.tracking.client import Tracker, open_tracker, tracking_uri
from pipelines.tracking.run import TrackedRun
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import Artifact, artifact_folder, read_artifact, run_folder
from presto_core.artifacts.run_layout import LEASE
from presto_core.artifacts.store import write_bytes
from presto_core.config.schema import StepsStage
from presto_core.errors import UserError
from presto_core.models.recorded_components import OwnFolders


def run(plan: SweepPlan, *, retry: bool = False) -> dict[str, Any]:
    """Run a sweep, resume an interrupted one, or report one that is done.

    Args:
        retry: run failed trials again.

    Returns:
        The content of result.json (`analyze`).

    Raises:
        UserError: parents, storage, MLflow or cluster cannot be used, or no trial finished.
    """
    preflight.check_packages()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    root = open_folder(absolute_uri(plan.sweep.storage.root), setting="storage.root")
    tracker = open_tracker(plan.sweep.tracking)
    parents = {role: resolve(tracker.client, reference, root.uri) for role, reference in plan.base.references().items()}
    preflight.check_parents(plan, parents)
    plan = _resolve_uris(plan, root, parents)
    folder = sweep_folder(root, plan.id)
    console.print(
        f"sweep {plan.id}: at most {plan.num_trials} trials of {plan.sweep.sweep.stage}, over {', '.join(plan.space)}"
    )
    with (
        hold_lease(folder.child(LEASE), f"sweep {plan.id}", wait=plan.base.cluster.wait_for_run) as lease,
        tracker.run("sweep", plan.sweep, plan.id, parents, name=plan.base.NAME) as mlflow_run,
    ):
        mlflow_run.check_holder = lease.check
        folder = lease.fence.guard(folder)
        store = SweepStore(folder)
        definition = make_definition(plan, mlflow_run.mlflow_id)
        store.write_definition(definition)
        records = _load_records(store, retry=retry)
        sessions = _run_trials_and_repeats(plan, store, records, tracker, mlflow_run)
        result = analyze(definition, store.load_all().values(), store.add_sessions(sessions))
        write_bytes(folder, RESULT, sweep_report.to_json(result))
        if result["winner"]:
            mlflow_run.log(len(result["trials"]), {f"best/{plan.metric}": result["trials"][0]["value"]})
        _publish_best(plan, result, root, tracker, check_holder=lease.check)
        _delete_checkpoints(plan, result, root)
        for path in sweep_report.write(result):
            mlflow_run.attach(path)
    sweep_report.show(result)
    if not result["winner"]:
        raise UserError(_explain_no_winner(plan, result["trials"]))
    return result


def _explain_no_winner(plan: SweepPlan, trials: list[dict[str, Any]]) -> str:
    reasons = [row["reason"] for row in trials if row["reason"]]
    first = f", first with: {reasons[0]}" if reasons else ""
    return (
        f"no trial of sweep {plan.id} finished: {len(reasons)} of {len(trials)} failed{first}; fix the cause, and "
        "run the same command with --retry"
    )


def _resolve_uris(plan: SweepPlan, root: Folder, parents: dict[str, Artifact]) -> SweepPlan:
    """Return the plan with URIs that mean the same in any process."""
    uris = {role: artifact.uri for role, artifact in parents.items()}
    uri = tracking_uri(plan.base.tracking)
    base = plan.base.model_copy(
        update={
            "inputs": plan.base.inputs.model_copy(update=uris),
            "storage": plan.base.storage.model_copy(update={"root": root.uri}),
            "tracking": plan.base.tracking.model_copy(update={"uri": uri}),
        }
    )
    if isinstance(base, StepsStage):
        base = settle(base, parents)  # as each trial does
    return replace(plan, base=base, parents={role: artifact.id for role, artifact in parents.items()})


def _load_records(store: SweepStore, *, retry: bool) -> dict[str, TrialRecord]:
    """Return the records of earlier attempts; trials that are not done resume from their newest checkpoint."""
    records = {run_id: record for run_id, record in store.load_all().items() if not (retry and record.state == FAILED)}
    if num_done := sum(record.is_done for record in records.values()):
        console.print(f"sweep: {num_done} trials are done already, {len(records) - num_done} resume where they stopped")
    return records


def _run_trials_and_repeats(
    plan: SweepPlan, store: SweepStore, records: dict[str, TrialRecord], tracker: Tracker, parent: TrackedRun
) -> list[dict[str, float]]:
    """Search, then repeat winner and preset with other seeds; return seconds and concurrent trials of each."""
    search_proposals = (
        [p for p in plan.iter_proposals() if not _is_done(records, p)] if plan.sweep.sweep.search != "optuna" else None
    )
    open_ended = (
        search_proposals is None and sum(r.is_done and r.role == TRIAL for r in records.values()) < plan.num_trials
    )
    repeats = [p for p in _make_repeats(plan, records) if not _is_done(records, p)]
    if not search_proposals and not open_ended and not repeats and records:
        return []
    sessions = []
    resources = TrialResources.from_cluster_config(plan.base.cluster)
    with ray_session(plan.base.cluster, cpus=resources.cpus), sigterm_as_interrupt():
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        check_fits(resources, nodes)
        preflight.check_mlflow_reachable(plan.base.tracking.uri, len(nodes))
        max_concurrent = max_concurrent_trials(resources, nodes, limit=plan.sweep.sweep.concurrent)
        console.print(
            preflight.estimate_duration(plan, tracker, len(search_proposals or ()) or plan.num_trials, max_concurrent)
        )
        validator = _start_validator(plan)
        callback = SweepCallback(plan, store, records, tracker, parent.mlflow_id)
        if search_proposals or open_ended:
            sessions.append(run_trials(plan, search_proposals, callback, max_concurrent, early_stopping=True))
        repeats = [p for p in _make_repeats(plan, records) if not _is_done(records, p)]
        if repeats:
            sessions.append(run_trials(plan, repeats, callback, max_concurrent, early_stopping=False))
        ray.kill(validator)
    return sessions


def _is_done(records: dict[str, TrialRecord], proposal: Proposal) -> bool:
    return proposal.run_id in records and records[proposal.run_id].is_done


def _start_validator(plan: SweepPlan) -> Any:
    """Start the validator of all trials in this process, so that it outlives each of them, and check it."""
    import ray

    check_reserved(plan.base.cluster)
    dataset = cache_on_node(plan.base.references()["dataset"])
    own = OwnFolders.from_config(plan.base.storage)
    actor = get_validator_actor(plan.base.validation, dataset, plan.base.cluster, own)
    if error := ray.get(actor.readiness_error.remote()):
        raise UserError(error)
    return actor


def _make_repeats(plan: SweepPlan, records: dict[str, TrialRecord]) -> list[Proposal]:
    """Return repeats of winner and preset with seeds unseen by the search; none while there is no winner."""
    best = rank(make_definition(plan, ""), records.values())
    if not best:
        return []
    default = plan.make_repeats({}, DEFAULT)
    return default + (plan.make_repeats(best[0].settings, WINNER) if best[0].settings else [])


def _delete_checkpoints(plan: SweepPlan, result: dict[str, Any], root: Folder) -> None:
    """Delete the checkpoints of trials that were stopped early, unless `sweep.keep_stopped` is set."""
    for row in result["trials"]:
        if row["state"] == PRUNED and not plan.sweep.sweep.keep_stopped:
            _delete_scratch(run_folder(root, row["run_id"]), row["run_id"])


def _delete_scratch(scratch: Folder, run_id: str) -> None:
    """Delete a run's scratch folder as its holder; what another process works on stays."""
    if not scratch.list_files(recursive=True, missing_ok=True):
        return
    with suppress(LeaseHeldError), hold_lease(scratch.child(LEASE), f"trial {run_id}") as lease:
        lease.stop()
        lease.check()
        scratch.delete()


def _publish_best(
    plan: SweepPlan, result: dict[str, Any], root: Folder, tracker: Tracker, *, check_holder: Callable[[], None]
) -> None:
    """Publish the best trials as candidates, the best one last, so that the alias points to it."""
    best: Iterable[dict[str, Any]] = [
        row for row in result["trials"] if row["state"] == FINISHED and row["role"] == TRIAL
    ]
    for row in reversed(list(best)[: plan.sweep.sweep.register_best]):
        artifact = read_artifact(artifact_folder(root, row["artifact"]))
        mlflow_id = tracker.find_run(row["run_id"])
        if mlflow_id:
            version = publish(
                tracker.client,
                plan.base.name,
                artifact,
                mlflow_run=mlflow_id,
                stage=plan.sweep.sweep.stage,
                root=root,
                pack=save_mlflow_model,
                check_holder=check_holder,
            )
            console.print(
                f"sweep: {version.name}@{version.alias} is version {version.number} = {artifact.id}, {artifact.uri}"
            )
