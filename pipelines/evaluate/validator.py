"""Validation of weights during training: clips of fixed captions and noise compared with music of the validation split.

The same weights get the same values, bit for bit: captions, noise, batches and threads are fixed. In a Ray session, one
validator serves all runs with the same validation settings, so that music is embedded once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torchaudio.functional as TAF
from torch import Tensor

from pipelines.cluster.device import is_in_ray
from pipelines.cluster.resources import VALIDATOR_CPUS, same_node_affinity
from pipelines.data.collate import make_conditioning
from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.data.parquet_tensors import Array
from pipelines.data.shards import FullRows
from pipelines.evaluate.rows import cycle, number_compositions, read_rows
from pipelines.evaluate.systems import EvaluatedSystem
from pipelines.inference.model import Model, open_model
from presto_core.config.evaluation import EmbedderConfig
from presto_core.config.sections import ClusterConfig
from presto_core.config.validation import ValidationConfig
from presto_core.device import explain_memory, resolve_device
from presto_core.errors import UserError
from presto_core.metrics.block_activity import record_block_activity
from presto_core.metrics.embedders.embedder import EmbedderError
from presto_core.metrics.embedders.musicnn import PATCH_SECONDS
from presto_core.metrics.embedders.table import load_embedder
from presto_core.metrics.embedding_sets import EmbeddingSets
from presto_core.metrics.latency import measure_latency
from presto_core.metrics.table import measure_quality
from presto_core.models.model_card import ModelCard
from presto_core.models.recorded_components import OwnFolders
from presto_core.training.step_rng import make_step_rng

TIMED_CALLS = 3
ValidateFn = Callable[[str], dict[str, float]]
"""URI of a model's folder -> its metrics by name."""


class Validator:
    """Validates models of one data set.

    Args:
        config: of validation; `every`, `backlog` and `keep` are not used.
        cluster: of the run: its device and threads.
        own: folders of a codec and text encoder that are not in the package.

    Raises:
        UserError: the data set has no validation rows, or its clips are too short for the embedding.
        DeviceError: the device is not there.
    """

    def __init__(
        self,
        config: ValidationConfig,
        dataset_uri: str,
        cluster: ClusterConfig = ClusterConfig(),
        own: OwnFolders = OwnFolders(),
    ) -> None:
        torch.set_num_threads(cluster.torch_threads)
        self.device = _select_device(cluster)
        self.config, self.dataset, self.own = config, open_dataset(dataset_uri), own
        check_validatable(config, self.dataset)
        self.reference: Array | None = None
        self.stats = {name: self.dataset.info["latents"][name] for name in ("mean", "std")}

    @cached_property
    def rows(self) -> FullRows:
        return read_rows(self.dataset, self.dataset.validation_split)

    @cached_property
    def groups(self) -> Array:
        """[N] number of each row's composition."""
        return number_compositions(self.rows.composition)

    @cached_property
    def embedder(self) -> Any:
        return load_embedder(EmbedderConfig(), device=self.device)

    def __call__(self, uri: str) -> dict[str, float]:
        """The validated metrics of the model in a folder."""
        model = open_model(uri, device=self.device, folders=self.own)
        system = system_for_kind(model.artifact.kind, self.config.steps)
        if self.reference is None:
            self.reference = self._embed_reference(model)
        with explain_memory(self.device, setting="validation.batch_size", value=self.config.batch_size, least=1):
            batches = [self._sample_batch(model, system, start) for start in self._starts]
        try:
            generated = np.concatenate([self._embed(model, batch) for batch in batches])
            quality = measure_quality(self._pair_with_reference(generated, self.reference), validated_only=True)
        except (ValueError, EmbedderError) as error:
            raise UserError(f"the weights in {uri} cannot be validated: {error}; lower the learning rate") from error
        clip = partial(self._sample_one_clip, model, system)
        with record_block_activity(model.network.blocks) as activity:
            clip()
        latency_ms = measure_latency(clip, calls=TIMED_CALLS).p50_ms
        return {**quality, "blocks_run": float(activity.runs), "latency_ms": latency_ms}

    def validate_remote(self, uri: str) -> dict[str, Any]:
        """The same for a caller in another process: a user's error becomes an entry `error`."""
        try:
            return {**self(uri)}
        except UserError as error:
            return {"error": str(error)}

    def readiness_error(self) -> str:
        """Read the validation rows; why that fails, or an empty string."""
        try:
            return "" if len(self.rows) else "the data set has no validation rows"
        except UserError as error:
            return str(error)

    @property
    def _starts(self) -> range:
        return range(0, self.config.samples, self.config.batch_size)

    def _sample_batch(self, model: Model, system: EvaluatedSystem, start: int) -> Tensor:
        """The fixed clips from number `start` on: x0 [B, C, T]."""
        count = min(self.config.batch_size, self.config.samples - start)
        return self._sample(model, system, self.rows.take(cycle(len(self.rows), start, count)), start)

    def _sample_one_clip(self, model: Model, system: EvaluatedSystem) -> Tensor:
        return self._sample(model, system, self.rows.take(slice(0, 1)), 0)

    def _sample(self, model: Model, system: EvaluatedSystem, rows: FullRows, start: int) -> Tensor:
        rng = make_step_rng(0, total_step=start, device=model.device)
        noise, cond = model.draw_noise(len(rows), generator=rng), make_conditioning(rows).to(model.device)
        return system.sample(model, noise, cond, schedule=self.config.schedule, generator=rng)

    def _pair_with_reference(self, generated: Array, reference: Array) -> EmbeddingSets:
        """Both sets, [N, patches, D] and [M, patches, D], as rows with the composition of each.

        Rows of a split with a single composition count as independent, since nothing else could be compared.
        """
        sets = EmbeddingSets(generated.reshape(-1, generated.shape[-1]), reference.reshape(-1, reference.shape[-1]))
        patches = generated.shape[1]
        prompts = np.repeat(self.groups[cycle(len(self.rows), 0, len(generated))], patches)
        real = np.repeat(self.groups[: len(reference)], patches)
        if min(len(np.unique(prompts)), len(np.unique(real))) < 2:
            return sets
        return replace(sets, generated_groups=prompts, reference_groups=real)

    def _embed_reference(self, model: Model) -> Array:
        """Embeddings of validation rows, through the codec as generated ones are: [N, patches, D]."""
        rows = self.rows.take(slice(0, self.config.reference_samples))
        latents = torch.tensor(np.asarray(rows.latents, dtype=np.float32)).to(model.device)
        if (card := self._card_of_dataset(model)) != model.card:
            model = replace(model, card=card)
        x0, size = model.card.normalize(latents), self.config.batch_size
        return np.concatenate([self._embed(model, x0[i : i + size]) for i in range(0, len(x0), size)])

    def _card_of_dataset(self, model: Model) -> ModelCard:
        return replace(model.card, **self.stats)

    @torch.inference_mode()
    def _embed(self, model: Model, x0: Tensor) -> Array:
        """Latents [B, C, T] normalised by the model's statistics -> embeddings [B, patches, D].

        Embedded latents are normalised by the data set's, so that models of other statistics have the same yardstick.
        """
        card = self._card_of_dataset(model)
        if self.config.embedding == "latents" and card != model.card:
            x0 = card.normalize(model.card.denormalize(x0))
        if self.config.embedding == "latents":
            return torch.cat([x0.mean(dim=2), x0.std(dim=2)], dim=1)[:, None].cpu().numpy()
        audio = model.decode(x0).mean(dim=1)
        resampled = TAF.resample(audio, model.codec.sample_rate_hz, self.embedder.sample_rate_hz)
        return np.asarray(self.embedder.embed(resampled).numpy())


def check_validatable(config: ValidationConfig, dataset: LatentDataset) -> None:
    """Refuse what cannot be validated, from the manifest alone.

    Raises:
        UserError: too few validation rows, or clips shorter than the embedding's patches.
    """
    split = dataset.validation_split
    rows = sum(shard.rows for shard in dataset.shards(split))
    if rows < 2:
        raise UserError(f"data set {dataset.uri} has {rows} {split} rows; validation needs two, ingest more music")
    codec, frames = dataset.info["codec"], dataset.info["latents"]["frames"]
    seconds = frames * codec["hop"] / codec["sample_rate_hz"]
    if config.embedding == "musicnn" and seconds < PATCH_SECONDS:
        raise UserError(
            f"clips of {seconds:.2f} s are shorter than the {PATCH_SECONDS:g} s that validation.embedding=musicnn "
            "needs; use validation.embedding=latents, or ingest with more ingest.chunk_frames"
        )


def system_for_kind(kind: str, steps: int) -> EvaluatedSystem:
    """How a model of this artifact kind is sampled."""
    if kind == "generator":
        return EvaluatedSystem("validated", "generator", steps=steps, nfe=steps)
    return EvaluatedSystem("validated", "teacher", steps=steps, nfe=steps, sampler="dpmpp_2m")


def _select_device(cluster: ClusterConfig) -> torch.device:
    """The device of a run's validator: an actor has no GPU, which the workers that train hold."""
    return torch.device("cpu") if is_in_ray() else resolve_device(cluster.device, setting="cluster.device")


def get_validator(
    config: ValidationConfig,
    dataset_uri: str,
    cluster: ClusterConfig = ClusterConfig(),
    own: OwnFolders = OwnFolders(),
) -> ValidateFn:
    """The validator of this Ray session, an actor; without Ray, one in this process."""
    if not is_in_ray():
        return _LazyValidator(partial(Validator, config, dataset_uri, cluster, own))
    actor = get_validator_actor(config, dataset_uri, cluster, own)

    def validate(uri: str) -> dict[str, float]:
        import ray

        response: dict[str, Any] = ray.get(actor.validate_remote.remote(uri))
        if "error" in response:
            raise UserError(response["error"])
        return response

    return validate


def get_validator_actor(
    config: ValidationConfig,
    dataset_uri: str,
    cluster: ClusterConfig = ClusterConfig(),
    own: OwnFolders = OwnFolders(),
) -> Any:
    """The actor with these settings, created if there is none; it ends with the process that created it."""
    import ray

    settings = json.dumps(
        [config.comparison_settings(), open_dataset(dataset_uri).manifest, own.codec, own.text], sort_keys=True
    )
    name = f"presto-validator-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
    options = {
        "name": name,
        "get_if_exists": True,
        "num_cpus": VALIDATOR_CPUS,
        "max_restarts": 3,
        "max_task_retries": 3,
    }
    options |= {"scheduling_strategy": same_node_affinity()}  # where the data set may have been copied to
    return ray.remote(Validator).options(**options).remote(config, dataset_uri, cluster, own)


class _LazyValidator:
    """Creates the validator on its first call."""

    def __init__(self, make: Callable[[], ValidateFn]) -> None:
        self.make = make

    @cached_property
    def validator(self) -> ValidateFn:
        return self.make()

    def __call__(self, uri: str) -> dict[str, float]:
        return self.validator(uri)
