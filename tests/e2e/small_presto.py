"""`presto` for the commands of the pages: the same, but that what takes minutes has the size of a toy.

Only settings that the command reads are added; those that are typed stay, unless they are sizes.
"""

from __future__ import annotations

import sys

from infra.cli.main import main
from pipelines.presets.resolve import is_override
from tests.e2e.test_flow import TINY

ROWS = ("cluster.data_workers=1", "ingest.validation_fraction=0.3", "ingest.test_fraction=0.3")
SWEEP = (
    "validation.every=1",
    "validation.samples=4",
    "validation.reference_samples=8",
    "sweep.samples=2",
    "sweep.repeats=0",
)
GATE = ("promote.max_latency_ratio=1e9", "promote.require_health=false")
# first words of a command -> settings of TINY that it reads, by their beginnings, and others
SIZES: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("corpus", "build"): (("corpus.",), ()),
    ("ingest",): ((), ROWS),
    ("train-teacher",): (("network.", "teacher.", "loop.", "cluster."), ()),
    ("distill-layers",): (("layers.", "loop.", "cluster."), ()),
    ("distill-steps",): (("steps.", "loop.", "cluster."), ()),
    ("evaluate",): (("evaluate.", "cluster."), ()),
    ("sweep", "demo"): (("steps.", "cluster."), SWEEP),
    ("registry", "promote"): ((), (*GATE, "--accept-worse")),
    ("generate",): (("generate.steps",), ()),
}


def add_sizes(args: list[str]) -> list[str]:
    """Return the arguments with the sizes of their command; a size that is typed gives way."""
    for words, (beginnings, others) in SIZES.items():
        if tuple(args[: len(words)]) == words and "--dry-run" not in args:
            added = [*(setting for setting in TINY if setting.startswith(beginnings or ("-",))), *others]
            keys = {setting.partition("=")[0] for setting in added}
            kept = [arg for arg in args if not (is_override(arg) and arg.partition("=")[0] in keys)]
            if "--samples" in kept:  # of a sweep
                del kept[kept.index("--samples") : kept.index("--samples") + 2]
            return [*kept, *added]
    return args


if __name__ == "__main__":
    sys.argv = ["presto", *add_sizes(sys.argv[1:])]
    main()
