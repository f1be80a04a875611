"""The Ray Serve application: one HTTP front over replicas that hold models; `build` is what a Serve config names."""

from __future__ import annotations

from typing import Any

from pipelines.serve.gateway import Gateway
from pipelines.serve.replica import ModelReplica
from pipelines.serve.settings import ServeSettings, check_access

OPEN_CONNECTIONS = 10_000  # of the front; clips are limited by `ServeSettings.max_accepted`
ROUTE_SPARE = 64  # calls beside clips, such as lists of models


def build(args: ServeSettings) -> Any:
    """Return the application; raises UserError if other machines could use it without a token."""
    check_access(args)
    replicas = _deployment(ModelReplica).options(
        **_scaling(args),
        max_ongoing_requests=args.ongoing_per_replica,
        max_queued_requests=args.max_accepted + ROUTE_SPARE,
        ray_actor_options={"num_cpus": args.cpus_per_replica, "num_gpus": args.gpus_per_replica},
        health_check_period_s=5,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=args.limits.request_timeout_s,
    )
    front = _deployment(Gateway).options(
        num_replicas=1, max_ongoing_requests=OPEN_CONNECTIONS, ray_actor_options={"num_cpus": 0}
    )
    return front.bind(args, replicas.bind(args))


def _deployment(decorated: Any) -> Any:
    """Return what Serve's decorators make of a class, whose type the annotations of Ray do not tell."""
    return decorated


def _scaling(args: ServeSettings) -> dict[str, Any]:
    if args.most_replicas == args.replicas:
        return {"num_replicas": args.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": args.replicas,
            "max_replicas": args.most_replicas,
            # one batch at work, and half of the next one waiting
            "target_ongoing_requests": 1.5 * args.max_batch,
            "upscale_delay_s": 5,
            "downscale_delay_s": 120,
        }
    }
