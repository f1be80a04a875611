"""Student settings that `presto science --search` compares: one change at a time.

A trial is data: dotted configuration keys and their values, checked against the schema in a test.
"""

from __future__ import annotations

import json
from typing import Any

# where the search set out from; every trial but the first changes one thing of it
START: dict[str, Any] = {
    "steps.generator_optim.learning_rate": 1e-4,
    "steps.fake_optim.learning_rate": 5e-4,
}
STUDENT_TRIALS: dict[str, dict[str, Any]] = {
    "start": START,
    "slower learning, 5e-5 / 3e-4": {
        "steps.generator_optim.learning_rate": 5e-5,
        "steps.fake_optim.learning_rate": 3e-4,
    },
    "p_DMD inference": START | {"steps.p_dmd": {"kind": "karras"}},
    "p_DMD half training, half inference": START | {"steps.p_dmd": {"kind": "mixture"}},
    "no GAN": START | {"steps.gan.generator_weight": 0.0},
    "strong GAN": START
    | {
        "steps.gan.generator_weight": 1.0,
        "steps.gan.fake_score_weight": 0.5,
        "steps.gan.taps": [1, 3, 5],
    },
    "twice as many updates": START | {"steps.generator_updates": 120},
}


def overrides(trial: dict[str, Any]) -> list[str]:
    """The trial as the command line's `key=value` words; YAML reads JSON."""
    return [f"{key}={json.dumps(value)}" for key, value in trial.items()]
