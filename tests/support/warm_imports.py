"""What commands import before they work, imported once by the process that tests fork them from.

A failed import is not an error here: multiprocessing ignores it, and each command would import for itself.
"""

from __future__ import annotations

import pipelines.stages.distill_layers
import pipelines.stages.distill_steps
import pipelines.stages.evaluate
import pipelines.stages.generate
import pipelines.stages.ingest
import pipelines.stages.train_teacher
import pipelines.sweep.runner
import pipelines.tracking.client
import pipelines.workflows.demo  # noqa: F401
