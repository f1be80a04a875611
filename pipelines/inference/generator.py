"""`load_generator("models:/presto-generator@champion")`: load a registered model and generate music from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipelines.inference.clip import EditedClip as EditedClip
from pipelines.inference.clip import GeneratedClip as GeneratedClip
from pipelines.inference.clip_audio import finish_audio
from pipelines.inference.clip_frames import check_seconds, count_frames
from pipelines.inference.editing_methods import Editing
from pipelines.inference.model import Model, open_model
from pipelines.inference.prompts import (
    PromptWords,
    check_prompts,
    check_words,
    make_conditions,
    parse_prompt,
    warn_of_cut_text,
)
from pipelines.inference.sampling_request import SamplingRequest, make_clip, sample
from pipelines.inference.sound import Sound as Sound
from pipelines.inference.sound import read_sound as read_sound
from pipelines.registry.resolve import resolve, resolve_pretrained
from pipelines.storage.filesystem import absolute_uri
from pipelines.tracking.sqlite_registry import open_for_reading
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.sections import StorageConfig, TrackingConfig
from presto_core.device import explain_memory, resolve_device
from presto_core.models.recorded_components import OwnFolders
from presto_core.training.step_rng import make_step_rng


@dataclass(frozen=True)
class Generator(Editing):
    """A model with everything it takes to turn prompts and audio into music."""

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
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        negative_prompt: str = "",
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
            guidance_scale: weight of classifier-free guidance of teachers and layer-distilled models; 1 is none.
            guidance_interval: noise levels between which guidance acts, the upper one included; None for all.
            guidance_rescale: how much of the variance that guidance adds is taken back, from 0 (none) to 1 (all).
            negative_prompt: what guidance moves away from, in place of music without a prompt.

        Raises:
            UserError: `steps`, `seed`, `seconds` or a tempo is out of range, the key is unknown, a prompt is not a
                text, guidance is given to a few-step generator, or the model gives NaN.
        """
        texts = check_prompts(prompts)
        request = SamplingRequest(
            steps=steps,
            seed=seed,
            schedule=schedule,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            negative_prompt=negative_prompt,
        )
        request.check(self.model)
        check_seconds(seconds)
        check_words(self.model, tempo_bpm=tempo_bpm, key=key)
        words = [parse_prompt(text, tempo_bpm=tempo_bpm, key=key) for text in texts]
        return [
            self._generate_one(text, words_of_text, request, seconds=seconds)
            for text, words_of_text in zip(texts, words)
        ]

    def _generate_one(
        self, prompt: str, words: PromptWords, request: SamplingRequest, *, seconds: float | None
    ) -> GeneratedClip:
        model = self.model
        cut_text = warn_of_cut_text(model, prompt)
        rate_hz, frames = model.codec.sample_rate_hz, count_frames(model, seconds)
        clip_seconds = seconds or frames * model.codec.hop / rate_hz
        with explain_memory(model.device, setting="generate.seconds", value=clip_seconds, least=1.0):
            rng = make_step_rng(request.seed, total_step=0, device=model.device)
            noise = model.draw_noise(1, generator=rng, frames=frames)
            cond = make_conditions(model, [prompt], [words], seconds=seconds)
            x0 = sample(model, noise, cond, request=request, rng=rng)
            decoded = model.decode(x0)[0].cpu().numpy()
        audio, gain_db = finish_audio(decoded, rate_hz, seconds=seconds)
        return make_clip(model, prompt, words, audio, request, gain_db=gain_db, cut_text=cut_text)


def load_generator(
    reference: str = "models:/presto-generator@champion",
    *,
    tracking_uri: str = "",
    storage_root: str = StorageConfig().root,
    device: torch.device | str = "auto",
    codec_folder: str = "",
    text_folder: str = "",
    autocast: Literal["none", "bf16"] = "none",
    compiled: bool = False,
) -> Generator:
    """Load the model named by models:/NAME@ALIAS, NAME@ALIAS, an alias of presto-generator, an id or a URI; or one of
    the package, such as presto-tiny-s, for which no registry is opened.

    Args:
        tracking_uri: URI of MLflow; empty for MLFLOW_TRACKING_URI, else the database under .presto.
        storage_root: where artifact ids are looked up.
        device: where it computes: cpu, cuda, cuda:1 or mps; auto is a GPU if there is one, else the CPU.
        codec_folder: your copy of a codec that is not in the package.
        text_folder: the same of a text encoder.
        autocast: bf16 halves the network's memory; for GPUs, no faster on a CPU; clips differ slightly.
        compiled: compile the network: faster clips, after up to a minute for each length and number of blocks; seconds
            from the next start on. Clips are equal up to rounding.

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
        autocast=autocast,
        compiled=compiled,
    )


def open_generator(
    uri: str,
    *,
    device: torch.device | str = "auto",
    folders: OwnFolders = OwnFolders(),
    content: str = "",
    autocast: str = "none",
    compiled: bool = False,
    one_thread: bool = True,
) -> Generator:
    """Open the model in an artifact's folder; arguments and errors are those of `open_model`."""
    return Generator(
        open_model(
            uri,
            device=device,
            folders=folders,
            content=content,
            autocast=autocast,
            compiled=compiled,
            one_thread=one_thread,
        )
    )
