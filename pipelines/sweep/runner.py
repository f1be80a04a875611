"""A sweep from its first proposal to its answer: Ray Tune runs trials, records are kept, winner and preset repeated."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipelines.cluster.resources import (
    Needs,
    concurrent,
    require_room,
)
from pipelines.cluster.session import ray_session
from pipelines.cluster.shutdown import interruptible
from pipelines.console import console
from pipelines.evaluate.validator import judging_actor
from pipelines.inference.lazy_mlflow import save_mlflow_model
from pipelines.registry.publish import publish
from pipelines.registry.resolve import resolve
from pipelines.storage.filesystem import absolute, open_folder
from pipelines.storage.node_cache import near_copy
from pipelines.sweep import preflight
from pipelines.sweep import report as sweep_report
from pipelines.sweep.analysis import (
    definition,
    ranked,
    summarised,
)
from pipelines.sweep.callback import SweepWatch
from pipelines.sweep.environment import ENVIRONMENT
from pipelines.sweep.plan import Plan, Proposal
from pipelines.sweep.store import (
    DEFAULT,
    FAILED,
    FINISHED,
    PRUNED,
    RESULT,
    TRIAL,
    WINNER,
    Record,
    Records,
    sweep_folder,
)
from pipelines.sweep.tune import tuned
from pipelines.tracking.client import (
    Tracker,
    open_tracker,
    tracking_uri,
)
from pipelines.tracking.run import TrackedRun
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import (
    Artifact,
    artifact_folder,
    read_artifact,
    run_folder,
)
from presto_core.artifacts.store import write_bytes
from presto_core.errors import UserError


def run(plan: Plan, *, retry: bool = False) -> dict[str, Any]:
    """Run a sweep, go on with an interrupted one, or report one that is done.

    Args:
        retry: run trials again that failed.

    Returns:
        What result.json holds (`sweep_result.summarised`).

    Raises:
        UserError: parents, storage, MLflow or cluster cannot be used; or no trial came to a value.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    root = open_folder(absolute(plan.sweep.storage.root))
    tracker = open_tracker(plan.sweep.tracking)
    parents = {role: resolve(tracker.client, said, root.uri) for role, said in plan.base.references().items()}
    preflight.require_parents(plan, parents)
    plan = _placed(plan, root, parents)
    folder = sweep_folder(root, plan.id)
    records = Records(folder)
    console.print(
        f"sweep {plan.id}: {plan.trials} trials at most of {plan.sweep.sweep.stage}, over {', '.join(plan.space)}"
    )
    with tracker.run("sweep", plan.sweep, plan.id, parents) as record:
        asked = definition(plan, record.mlflow_id)
        records.define(asked)
        known = _kept(records, retry=retry)
        spent = _spend(plan, records, known, tracker, record)
        result = summarised(asked, records.all().values(), records.sessions(spent))
        write_bytes(folder, RESULT, sweep_report.to_json(result))
        if result["winner"]:
            record.log(len(result["trials"]), {f"best/{plan.metric}": result["trials"][0]["value"]})
        _register(plan, result, root, tracker)
        _tidy(plan, result, root)
        for path in sweep_report.write(result):
            record.attach(path)
    sweep_report.show(result)
    if not result["winner"]:
        raise UserError(_why_none(plan, result["trials"]))
    return result


def _why_none(plan: Plan, trials: list[dict[str, Any]]) -> str:
    reasons = [row["reason"] for row in trials if row["reason"]]
    first = f"; the first because: {reasons[0]}" if reasons else ""
    return (
        f"no trial of sweep {plan.id} came to the end: {len(reasons)} of {len(trials)} failed{first}; mend that, and "
        "run the same command with --retry"
    )


def _placed(plan: Plan, root: Folder, parents: dict[str, Artifact]) -> Plan:
    """The plan with everything named so that it means the same in any process."""
    uris = {role: artifact.uri for role, artifact in parents.items()}
    uri = tracking_uri(plan.base.tracking)
    base = plan.base.model_copy(
        update={
            "inputs": plan.base.inputs.model_copy(update=uris),
            "storage": plan.base.storage.model_copy(update={"root": root.uri}),
            "tracking": plan.base.tracking.model_copy(update={"uri": uri}),
        }
    )
    return replace(plan, base=base, parents={role: artifact.id for role, artifact in parents.items()})


def _kept(records: Records, *, retry: bool) -> dict[str, Record]:
    """Records of earlier lives of this sweep; what is not over goes on from its newest checkpoint."""
    known = {run_id: record for run_id, record in records.all().items() if not (retry and record.state == FAILED)}
    if over := sum(record.over for record in known.values()):
        console.print(f"sweep: {over} trials are over already, {len(known) - over} go on where they stopped")
    return known


def _spend(
    plan: Plan, records: Records, known: dict[str, Record], tracker: Tracker, parent: TrackedRun
) -> list[dict[str, float]]:
    """Search, then repeat winner and preset with other seeds; what each took: seconds, and trials at a time."""
    searching = [p for p in plan.proposals() if not _over(known, p)] if plan.sweep.sweep.search != "optuna" else None
    open_ended = searching is None and sum(r.over and r.role == TRIAL for r in known.values()) < plan.trials
    repeats = [p for p in _repeats(plan, known) if not _over(known, p)]
    if not searching and not open_ended and not repeats and known:
        return []
    spent = []
    needs = Needs.of(plan.base.cluster)
    with ray_session(plan.base.cluster, cpus=needs.cpus), interruptible():
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        require_room(needs, nodes)
        preflight.require_reachable_record(plan.base.tracking.uri, len(nodes))
        at_once = concurrent(needs, nodes, most=plan.sweep.sweep.concurrent)
        console.print(preflight.estimate(plan, tracker, len(searching or ()) or plan.trials, at_once))
        judge = _judge(plan)
        watch = SweepWatch(plan, records, known, tracker, parent.mlflow_id)
        if searching or open_ended:
            spent.append(tuned(plan, searching, watch, at_once, early=True))
        repeats = [p for p in _repeats(plan, known) if not _over(known, p)]
        if repeats:
            spent.append(tuned(plan, repeats, watch, at_once, early=False))
        ray.kill(judge)
    return spent


def _over(known: dict[str, Record], proposal: Proposal) -> bool:
    return proposal.run_id in known and known[proposal.run_id].over


def _judge(plan: Plan) -> Any:
    """The judge of all trials, made by this process so that it outlives each of them; says early what it lacks."""
    import ray

    dataset = near_copy(plan.base.references()["dataset"])
    actor = judging_actor(plan.base.validation, dataset, torch_threads=plan.base.cluster.torch_threads)
    if why_not := ray.get(actor.ready.remote()):
        raise UserError(why_not)
    return actor


def _repeats(plan: Plan, known: dict[str, Record]) -> list[Proposal]:
    """Winner and preset with seeds that the search did not see; none while there is no winner."""
    best = ranked(definition(plan, ""), known.values())
    if not best:
        return []
    default = plan.repeats({}, DEFAULT)
    return default + (plan.repeats(best[0].settings, WINNER) if best[0].settings else [])


def _tidy(plan: Plan, result: dict[str, Any], root: Folder) -> None:
    """Delete the checkpoints of trials that were stopped early, unless they are wanted."""
    for row in result["trials"]:
        if row["state"] == PRUNED and not plan.sweep.sweep.keep_stopped:
            run_folder(root, row["run_id"]).delete()


def _register(plan: Plan, result: dict[str, Any], root: Folder, tracker: Tracker) -> None:
    """The best trials as candidates, the best one last, so that the alias is left with it."""
    best: Iterable[dict[str, Any]] = [
        row for row in result["trials"] if row["state"] == FINISHED and row["role"] == TRIAL
    ]
    for row in reversed(list(best)[: plan.sweep.sweep.register_best]):
        artifact = read_artifact(artifact_folder(root, row["artifact"]))
        mlflow_id = tracker.run_of(row["run_id"])
        if mlflow_id:
            made = publish(
                tracker.client,
                plan.base.name,
                artifact,
                mlflow_run=mlflow_id,
                stage=plan.sweep.sweep.stage,
                root=root,
                pack=save_mlflow_model,
            )
            console.print(f"sweep: {made.name}@{made.alias} is version {made.number} = {artifact.id}, {artifact.uri}")
