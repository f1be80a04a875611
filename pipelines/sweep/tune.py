"""Run a sweep's proposals as trials of Ray Tune, and turn its exceptions into one message."""

from __future__ import annotations

import time
from contextlib import suppress

from pipelines.cluster.resources import TrialResources
from pipelines.cluster.session import ClusterError
from pipelines.console import progress_bar
from pipelines.sweep.callback import SweepCallback
from pipelines.sweep.plan import Proposal, SweepPlan
from presto_core.errors import UserError


def run_trials(
    plan: SweepPlan,
    proposals: list[Proposal] | None,
    callback: SweepCallback,
    max_concurrent: int,
    *,
    early_stopping: bool,
) -> dict[str, float]:
    """Run trials with Ray Tune.

    Args:
        proposals: what to run; None lets Optuna propose.
        early_stopping: stop unpromising trials early.
    """
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    from pipelines.sweep.search import FixedListSearcher, OptunaSearcher, make_scheduler
    from pipelines.sweep.trial import run_trial

    searcher = (
        OptunaSearcher(plan, callback.start_trial, callback.known)
        if proposals is None
        else FixedListSearcher(proposals, callback.start_trial)
    )
    scheduler = make_scheduler(plan, callback.known.values()) if early_stopping else FIFOScheduler()
    resources = TrialResources.tune_resources(plan.base.cluster)
    bookkeeping = callback.records.folder.child(f"ray-{time.time_ns():x}")  # Tune's own state, never read again
    total, started = plan.num_trials if proposals is None else len(proposals), time.monotonic()
    with progress_bar("sweep" if early_stopping else "repeats", total, waits_for="first trials run") as bar:
        callback.bar, callback.num_done = bar, 0
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, plan=plan), resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=total,
                max_concurrent_trials=max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=bookkeeping.uri,
                verbose=0,
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=plan.base.cluster.max_failures),
            ),
        )
        try:
            tuner.fit()
        except Exception as error:
            raise _extract_user_error(error) from error
        finally:
            with suppress(UserError):
                bookkeeping.delete()
    return {"seconds": time.monotonic() - started, "at_once": float(max_concurrent)}


def _extract_user_error(error: Exception) -> Exception:
    """Return the `UserError` that Tune or Ray wrapped in an exception of theirs, or the exception itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, UserError):
            return inner
        inner = inner.__cause__ or inner.__context__
    if type(error).__module__.startswith("ray."):
        return ClusterError(f"the sweep lost its Ray session ({type(error).__name__}); run the same command to resume")
    return error
