"""`load_generator("models:/presto-generator@champion")`: load a registered model and generate music from Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt
import torch

from pipelines.inference.clip_audio import count_samples, encode_wav, finish_audio
from pipelines.inference.model import Model, open_model, sample_generator, sample_teacher
from pipelines.inference.prompts import PromptWords, check_prompts, make_conditions, parse_prompt, warn_of_cut_text
from pipelines.registry.resolve import resolve, resolve_pretrained
from pipelines.storage.filesystem import absolute_uri
from pipelines.tracking.sqlite_registry import open_for_reading
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.config.sampling import MAX_SEED, BaseSampler, ScheduleConfig
from presto_core.config.sections import StorageConfig, TrackingConfig
from presto_core.device import explain_memory, resolve_device
from presto_core.errors import UserError
from presto_core.models.recorded_components import OwnFolders
from presto_core.training.step_rng import make_step_rng

FRAME_MULTIPLE = 16  # frames of a clip are a multiple of it; every patch size in use divides it


@dataclass(frozen=True)
class GeneratedClip:
    """One generated clip.

    Attributes:
        audio: [channels, samples], float32 with peaks of at most -1 dBFS, faded over 5 ms at both ends.
        device: what it was made on; another kind of device draws other noise, and so gives another clip.
        model_id, steps, seed, tempo_bpm, key, schedule: what it was made with; tempo and key may be the prompt's own,
            and a schedule of None is the one stored for the number of steps.
        gain_db: what a clip with higher peaks was turned down by, else 0.
        cut_text: end of the prompt that is beyond what the text encoder reads: only a tempo or key in it counts.
    """

    prompt: str
    audio: npt.NDArray[np.float32]
    sample_rate_hz: int
    model_id: str
    steps: int
    seed: int
    tempo_bpm: float | None = None
    key: str | None = None
    schedule: ScheduleConfig | None = None
    gain_db: float = 0.0
    cut_text: str = ""
    device: str = "cpu"

    @property
    def seconds(self) -> float:
        return self.audio.shape[1] / self.sample_rate_hz

    @property
    def settings(self) -> dict[str, object]:
        """All that decides the clip: equal settings give equal bits on the same machine."""
        schedule = None if self.schedule is None else self.schedule.model_dump()
        # names of files hash the settings, and clips of a CPU had their names before there was a choice
        device = {} if self.device == "cpu" else {"device": self.device}
        return device | {
            "prompt": self.prompt,
            "model": self.model_id,
            "steps": self.steps,
            "seed": self.seed,
            "samples": self.audio.shape[1],
            "tempo_bpm": self.tempo_bpm,
            "key": self.key,
            "schedule": schedule,
        }

    def to_wav(self) -> bytes:
        """Return a 16-bit WAV that holds its settings: the prompt as title, all of them as JSON in the comment."""
        details = {**self.settings, "gain_db": round(self.gain_db, 3), "presto": _find_version()}
        return encode_wav(self.audio, self.sample_rate_hz, title=self.prompt, details=details)


@dataclass(frozen=True)
class Generator:
    """A model with everything it takes to turn prompts into music."""

    model: Model

    @property
    def artifact(self) -> Artifact:
        """The artifact it was loaded from."""
        return self.model.artifact

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int = 4,
        seed: int = 0,
        seconds: float | None = None,
        tempo_bpm: float | None = None,
        key: str | None = None,
        schedule: ScheduleConfig | None = None,
    ) -> list[GeneratedClip]:
        """Generate one clip per prompt; the same prompt, seed and steps give the same clip, whatever the other prompts.

        The end of a prompt that the text encoder does not read is printed, and is `cut_text` of the clip.

        Args:
            prompts: one prompt, or several.
            steps: steps of ping-pong sampling for a few-step generator, else of the teacher's sampler.
            schedule: noise levels; None for those that the model stores for `steps`, else the default ones.
            seconds: length of a clip, exactly; None for the length the model was trained on.
            tempo_bpm: None takes that which the prompt names, if it does.
            key: the same.

        Raises:
            UserError: `steps`, `seed`, `seconds` or a tempo is out of range, the key is unknown, a prompt is not a
                text, or the model gives NaN.
        """
        texts = check_prompts(prompts)
        _check_numbers(steps=steps, seed=seed, seconds=seconds)
        words = [parse_prompt(text, tempo_bpm=tempo_bpm, key=key) for text in texts]
        return [
            self._generate_one(text, words_of_text, steps=steps, seed=seed, seconds=seconds, schedule=schedule)
            for text, words_of_text in zip(texts, words)
        ]

    def _generate_one(
        self,
        prompt: str,
        words: PromptWords,
        *,
        steps: int,
        seed: int,
        seconds: float | None,
        schedule: ScheduleConfig | None,
    ) -> GeneratedClip:
        model = self.model
        cut_text = warn_of_cut_text(model, prompt)
        rate_hz, frames = model.codec.sample_rate_hz, count_frames(model, seconds)
        clip_seconds = seconds or frames * model.codec.hop / rate_hz
        with explain_memory(model.device, setting="generate.seconds", value=clip_seconds, least=1.0):
            rng = make_step_rng(seed, total_step=0, device=model.device)
            noise = model.draw_noise(1, generator=rng, frames=frames)
            cond = make_conditions(model, [prompt], [words], seconds=seconds)
            if model.artifact.kind == "generator":
                x0 = sample_generator(model, noise, cond, steps=steps, schedule=schedule, generator=rng)
            else:
                x0 = sample_teacher(model, noise, cond, sampler=BaseSampler(steps=steps), schedule=schedule)
            decoded = model.decode(x0)[0].cpu().numpy()
        audio, gain_db = finish_audio(decoded, rate_hz, seconds=seconds)
        return GeneratedClip(
            prompt,
            audio,
            rate_hz,
            model_id=model.artifact.id,
            steps=steps,
            seed=seed,
            tempo_bpm=words.tempo_bpm,
            key=words.key_name,
            schedule=schedule,
            gain_db=gain_db,
            cut_text=cut_text,
            device=model.device.type,
        )


def load_generator(
    reference: str = "models:/presto-generator@champion",
    *,
    tracking_uri: str = "",
    storage_root: str = StorageConfig().root,
    device: torch.device | str = "auto",
    codec_folder: str = "",
    text_folder: str = "",
) -> Generator:
    """Load the model named by models:/NAME@ALIAS, NAME@ALIAS, an alias of presto-generator, an id or a URI; or one of
    the package, such as presto-tiny-s, for which no registry is opened.

    Args:
        tracking_uri: URI of MLflow; empty for MLFLOW_TRACKING_URI, else the database under .presto.
        storage_root: where artifact ids are looked up.
        device: where it computes: cpu, cuda, cuda:1 or mps; auto is a GPU if there is one, else the CPU.
        codec_folder: your copy of a codec that is not in the package.
        text_folder: the same of a text encoder.

    Raises:
        UserError: it is not registered, missing, damaged, or not a model; or there is no such device.
    """
    device = resolve_device(device)
    artifact = resolve_pretrained(reference)
    if artifact is None:
        registry = open_for_reading(TrackingConfig(uri=tracking_uri))
        artifact = resolve(registry, reference, absolute_uri(storage_root))
    return open_generator(
        artifact.uri,
        device=device,
        folders=OwnFolders(codec_folder, text_folder),
        content=content_hash(artifact.manifest),
    )


def open_generator(
    uri: str, *, device: torch.device | str = "auto", folders: OwnFolders = OwnFolders(), content: str = ""
) -> Generator:
    """Open the model in an artifact's folder; arguments and errors are those of `open_model`."""
    return Generator(open_model(uri, device=device, folders=folders, content=content))


def count_frames(model: Model, seconds: float | None) -> int:
    """Return latent frames that a clip of this length needs, at least; None means the length of training.

    Raises:
        UserError: the model always makes clips of one length, which this exceeds.
    """
    longest = model.card.clip_seconds
    if longest is not None and seconds is not None and seconds > longest + 1e-6:
        raise UserError(f"seconds={seconds:g} is longer than the {longest:.2f} s of every clip of this model")
    if seconds is None or longest is not None:
        return model.card.frames
    frames = count_samples(seconds, model.codec.sample_rate_hz) / model.codec.hop
    return math.ceil(frames / FRAME_MULTIPLE) * FRAME_MULTIPLE


def _find_version() -> str:
    try:
        return version("presto-distill")
    except PackageNotFoundError:  # the code that a job brings is not installed
        return "not installed"


def _check_numbers(*, steps: int, seed: int, seconds: float | None) -> None:
    if steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed={seed} must be from 0 to {MAX_SEED}")
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"seconds={seconds} must be above 0 and finite; leave it out for the length of training")
