"""Distill the teacher of the package on your own recordings, in one process: no cluster, no server.

    python examples/distill_your_music.py /music "solo piano, slow, A minor" --updates 300

Recordings become latents, the few-step generator learns from the teacher on them, and one clip is generated. Run it
again to resume; what is finished is reused. Everything is below .presto in the current folder.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pipelines.presets.resolve import PRESETS
from pipelines.stages.table import STAGES
from presto_core.config.loader import load_config
from presto_core.errors import UserError

# in this process: no Ray workers
IN_PROCESS = ("cluster.num_workers=0", "cluster.data_workers=1")


def run_stage(name: str, *overrides: str) -> Any:
    """Run a stage with the settings of the preset `demo`, as `presto NAME demo …` does; return what it made."""
    stage = STAGES[name]
    return stage.run(load_config(stage.config, "demo", [*IN_PROCESS, *overrides], preset_folder=PRESETS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("music", help="folder of recordings, each at least 6 s")
    parser.add_argument("prompt", help="what to generate in the end")
    parser.add_argument("--updates", type=int, default=300, help="of the generator; about 1 s each on one core")
    args = parser.parse_args()

    dataset = run_stage("ingest", f"ingest.source={args.music}", "ingest.name=example-music")
    generator = run_stage(
        "distill-steps",
        f"inputs.dataset={dataset.id}",
        f"steps.generator_updates={args.updates}",
        "name=example-generator",
    )
    (clip,) = run_stage("generate", f"inputs.generator={generator.id}", f"generate.prompts=[{args.prompt!r}]")
    print(f"{generator.id} plays {clip.prompt!r}: {clip.wav}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
