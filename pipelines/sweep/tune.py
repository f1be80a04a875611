"""Where a sweep's proposals become trials of Ray Tune, and what goes wrong there becomes a sentence."""

from __future__ import annotations

import time
from contextlib import suppress

from pipelines.cluster.resources import Needs
from pipelines.cluster.session import ClusterError
from pipelines.console import console, progress_bar
from pipelines.sweep.callback import SweepWatch
from pipelines.sweep.plan import Plan, Proposal
from presto_core.errors import UserError


def tuned(
    plan: Plan, proposals: list[Proposal] | None, watch: SweepWatch, at_once: int, *, early: bool
) -> dict[str, float]:
    """Run trials with Ray Tune.

    Args:
        proposals: what to run; None lets Optuna propose.
        early: stop trials that are lost.
    """
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    from pipelines.sweep.search import (
        Learned,
        Listed,
        scheduler_of,
    )
    from pipelines.sweep.trial import run_trial

    searcher = Learned(plan, watch.given, watch.known) if proposals is None else Listed(proposals, watch.given)
    scheduler = scheduler_of(plan, watch.known.values()) if early else FIFOScheduler()
    resources = Needs.for_tune(plan.base.cluster)
    bookkeeping = watch.records.folder.child(f"ray-{time.time_ns():x}")  # of Tune's own, which nothing reads again
    total, began = plan.trials if proposals is None else len(proposals), time.monotonic()
    with progress_bar("sweep" if early else "repeats", total) as bar:
        watch.bar, watch.over = bar, 0
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, plan=plan), resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=total,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=bookkeeping.uri,
                verbose=0,
                callbacks=[watch],
                failure_config=tune.FailureConfig(max_failures=plan.base.cluster.max_failures),
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            console.print("interrupted; run the same command again to go on where it stopped")
            raise
        except Exception as error:
            raise _sentence(error) from error
        finally:
            with suppress(UserError):
                bookkeeping.delete()
    return {"seconds": time.monotonic() - began, "at_once": float(at_once)}


def _sentence(error: Exception) -> Exception:
    """What one of our own parts said, where Tune or Ray put it into an exception of theirs."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, UserError):
            return inner
        inner = inner.__cause__ or inner.__context__
    if type(error).__module__.startswith("ray."):
        return ClusterError(f"the sweep lost its Ray session ({type(error).__name__}); run the same command to go on")
    return error
