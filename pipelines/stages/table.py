"""The table of stages: the only list of what there is to run. A new stage is one module and one row here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from presto_core.config.schema import (
    CorpusStage,
    DatasetStage,
    EditStage,
    EvaluateStage,
    GenerateStage,
    ImportTeacherStage,
    IngestStage,
    LayersStage,
    RegistryStage,
    StepsStage,
    SweepStage,
    TeacherStage,
)
from presto_core.config.stage import StageConfig

OWN_FOLDERS = ("storage.codec_folder", "storage.text_folder")
"""Settings that any stage may read local folders from, beside those of its row."""


@dataclass(frozen=True)
class Stage:
    """One row.

    Attributes:
        config: its configuration class, which names the stage.
        module: has `run(config)`; imported when the stage runs. Empty if only its settings are read.
        command: its arguments on the command line.
        summary: what `--help` says.
        workers: what it asks a cluster for: workers that train, workers on data, or none.
        trains: whether it has checkpoints, `--resume` and `--fork`.
        writes_run: whether it has a run id and makes an artifact.
        uses_storage: whether it reads or writes the store and MLflow.
        settings: those that are typed most, which `--help` explains.
        input_paths, output_paths: settings that hold paths or URIs, beside storage.root and inputs.
    """

    config: type[StageConfig]
    module: str = ""
    command: tuple[str, ...] = ()
    summary: str = ""
    workers: Literal["none", "data", "train"] = "none"
    trains: bool = False
    writes_run: bool = False
    uses_storage: bool = True
    settings: tuple[str, ...] = ()
    input_paths: tuple[str, ...] = ()
    output_paths: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.config.NAME

    def run(self, config: StageConfig, *args: Any) -> Any:
        """Run the stage in this process; `args` are those of its `run` after the configuration."""
        return import_module(self.module).run(config, *args)


ROWS = (
    Stage(
        CorpusStage, "pipelines.stages.corpus", ("corpus", "build"),
        "Build the default corpus: public-domain pieces and composed ones, with captions, rendered with a soundfont.",
        uses_storage=False, output_paths=("corpus.folder",),
        settings=(
            "corpus.minutes", "corpus.clip_seconds", "corpus.validation_tracks", "corpus.test_tracks",
            "corpus.real_fraction", "corpus.folder", "cluster.cpus", "seed",
        ),
    ),
    Stage(
        IngestStage, "pipelines.stages.ingest", ("ingest",),
        "Encode audio (ingest.source=folder, s3://prefix or a list) into latents; encoded files are reused.",
        workers="data", writes_run=True, input_paths=("ingest.source", "ingest.manifest", "codec.path", "text.path"),
        settings=(
            "ingest.source", "ingest.manifest", "ingest.name", "ingest.chunk_frames", "ingest.overlap_frames",
            "ingest.channels", "ingest.loudness_lufs", "ingest.validation_fraction", "ingest.test_fraction",
            "ingest.licence", "codec.path", "cluster.data_workers", "storage.root",
        ),
    ),
    Stage(DatasetStage),
    Stage(
        ImportTeacherStage, "pipelines.stages.import_teacher", ("teacher", "import"),
        "Import a teacher that was trained elsewhere: a diffusers folder, or a repository of the Hugging Face hub.",
        writes_run=True,
        settings=("model.source", "model.revision", "model.licence", "name", "storage.root"),
    ),
    Stage(
        TeacherStage, "pipelines.stages.train_teacher", ("train-teacher",),
        "Train the teacher on latents.",
        workers="train", trains=True, writes_run=True,
        settings=(
            "inputs.dataset", "teacher.steps", "teacher.global_batch_size", "teacher.optim.learning_rate",
            "network.dim", "network.depth", "validation.every", "loop.checkpoint_every", "cluster.num_workers",
            "name", "storage.root", "seed",
        ),
    ),
    Stage(
        LayersStage, "pipelines.stages.distill_layers", ("distill-layers",),
        "Distill layers: run fewer blocks at high noise (Presto-L; layers.mode=ase for the baseline).",
        workers="train", trains=True, writes_run=True,
        settings=(
            "inputs.dataset", "inputs.teacher", "layers.steps", "layers.global_batch_size",
            "layers.optim.learning_rate", "layers.budget.kind", "layers.mode", "validation.every",
            "loop.checkpoint_every", "cluster.num_workers", "storage.root", "seed",
        ),
    ),
    Stage(
        StepsStage, "pipelines.stages.distill_steps", ("distill-steps",),
        "Distill steps: train a few-step generator from the teacher (Presto-S; with --from, Presto-LS).",
        workers="train", trains=True, writes_run=True,
        settings=(
            "inputs.dataset", "inputs.teacher", "steps.generator_updates",
            "steps.fake_updates_per_generator_update", "steps.global_batch_size", "steps.guidance_scale",
            "steps.p_gen.kind", "steps.generator_optim.learning_rate", "steps.gan.generator_weight",
            "validation.every", "loop.checkpoint_every", "cluster.num_workers", "storage.root", "seed",
        ),
    ),
    Stage(
        EvaluateStage, "pipelines.stages.evaluate", ("evaluate",),
        "Compare the teacher with distilled models on prompts of the test split: quality, prompt adherence, latency; "
        "inputs.generator=candidate-s inputs.compared='\\[candidate-l, candidate-ls]' names models. "
        "Next: presto report.",
        workers="data", writes_run=True, input_paths=("evaluate.folders",),
        settings=(
            "inputs.dataset", "inputs.teacher", "inputs.generator", "inputs.compared", "evaluate.num_samples",
            "evaluate.student_steps", "evaluate.base", "evaluate.embedders", "evaluate.folders",
            "evaluate.save_audio", "cluster.data_workers", "storage.root", "seed",
        ),
    ),
    Stage(
        GenerateStage, "pipelines.stages.generate", ("generate",),
        "Generate music from a prompt: a WAV file and a spectrogram in generate.output.",
        input_paths=("generate.prompts_file",), output_paths=("generate.output",),
        settings=(
            "generate.prompts_file", "generate.steps", "generate.seed", "generate.seconds", "generate.key",
            "generate.tempo_bpm", "generate.loop", "generate.sections", "generate.guidance_scale",
            "generate.guidance_interval", "generate.guidance_rescale", "generate.negative_prompt",
            "generate.schedule", "generate.autocast", "generate.compile", "generate.output", "storage.root",
        ),
    ),
    Stage(
        EditStage, "pipelines.stages.edit", ("edit",),
        "Edit audio: change all of it, repaint regions and keep every other sample, or continue it.",
        input_paths=("edit.file",), output_paths=("edit.output",),
        settings=(
            "edit.regions", "edit.strength", "edit.extend", "edit.at", "edit.steps", "edit.seed", "edit.key",
            "edit.tempo_bpm", "edit.guidance_scale", "edit.guidance_interval", "edit.guidance_rescale",
            "edit.negative_prompt", "edit.schedule", "edit.autocast", "edit.compile", "edit.output", "storage.root",
        ),
    ),
    Stage(RegistryStage),
    Stage(SweepStage, command=("sweep", "run"), workers="train"),
)  # fmt: skip
STAGES: dict[str, Stage] = {row.name: row for row in ROWS}
