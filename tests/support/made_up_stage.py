"""A stage that the package does not have: settings and work, to be imported by a test that adds a row for it."""

from __future__ import annotations

from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.config.section import Count, Section
from presto_core.config.stage import StageConfig


class TextConfig(Section):
    words: str = "nothing"
    copies: Count = 1


class MadeUpStage(StageConfig):
    NAME = "made-up"
    made_up: TextConfig = TextConfig()

    def derive_values(self) -> dict[str, int]:
        return {"characters": len(self.made_up.words) * self.made_up.copies}


def run(config: MadeUpStage) -> Artifact:
    """Write the words into an artifact."""
    from pipelines.stages.runner import StageContext, run_stage

    def execute(ctx: StageContext) -> None:
        commit_artifact(
            ctx.artifact,
            kind="report",
            artifact_id=ctx.run_id,
            config_yaml="",
            parents=ctx.parent_ids,
            files={"words.yaml": (config.made_up.words * config.made_up.copies).encode()},
            details={"report": {}},
        )

    return run_stage(config.NAME, config, execute, register_as="made-up")
