"""Fit a codec to a folder of music and write its weights and provenance: the work of `presto codec fit`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from presto_core.audio.chunks import AudioError, decode, is_audio
from presto_core.audio.codec import CodecError
from presto_core.audio.mel_codec.codec_fit import fit_linear_decoder, fit_mel_pca
from presto_core.audio.mel_codec.mel_frames import MelSettings
from presto_core.audio.mel_codec.mel_pca import DECODER_FILE, ENCODER_FILE, MelPcaEncoder
from presto_core.audio.mel_codec.tensor_file import TensorFile

PROVENANCE_FILE = "provenance.json"
OUTPUT_FILES = (ENCODER_FILE, DECODER_FILE, PROVENANCE_FILE)
MANIFEST_FILE = "manifest.jsonl"
CORPUS_FILE = "corpus.json"
PASSES = 2  # over the audio: one for the encoder, one for the decoder
VERSIONED_PACKAGES = ("torch", "torchaudio", "soundfile", "soxr", "safetensors")


@dataclass(frozen=True)
class FitCorpus:
    """The audio of a folder to fit a codec to: the train split of its manifest, or every audio file.

    Iterating decodes one clip [N] at a time, so the corpus may exceed memory, and can be repeated.

    Attributes:
        skipped: file name -> reason, for files that are not audio or too short for a spectrum; filled by iterating.
    """

    folder: Path
    files: tuple[Path, ...]
    mel: MelSettings
    skipped: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def open(folder: Path, mel: MelSettings | None = None) -> FitCorpus:
        """List the audio files of a folder; raises CodecError if there are none."""
        if not folder.is_dir():
            raise CodecError(f"{folder} is not a folder; pass a folder of music or a built corpus")
        manifest = folder / MANIFEST_FILE
        if manifest.is_file():
            files = _read_train_split(manifest)
        else:
            files = tuple(sorted(path for path in folder.rglob("*") if is_audio(path.name)))
        if not files:
            raise CodecError(f"{folder} contains no audio to fit a codec to; pass a folder of music or a built corpus")
        return FitCorpus(folder, files, mel or MelSettings())

    def __iter__(self) -> Iterator[Tensor]:
        for path in self.files:
            try:
                yield self._read(path)
            except (AudioError, OSError) as error:
                self.skipped[str(path.relative_to(self.folder))] = getattr(error, "strerror", None) or str(error)

    def _read(self, path: Path) -> Tensor:
        with path.open("rb") as stream:
            samples = decode(stream, sample_rate_hz=self.mel.sample_rate_hz)
        shortest = max(self.mel.hop, self.mel.n_fft)
        if len(samples) < shortest:
            raise AudioError(f"is shorter than one latent frame: {len(samples)} of {shortest} samples")
        return torch.from_numpy(samples)

    def describe(self) -> dict[str, Any]:
        """Describe the data without local paths: counts, hashes, and fields of corpus.json if there is one."""
        manifest, corpus_file = self.folder / MANIFEST_FILE, self.folder / CORPUS_FILE
        info: dict[str, Any] = {"clips": len(self.files) - len(self.skipped), "skipped": len(self.skipped)}
        if manifest.is_file():
            info |= {"split": "train", "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()}
        if corpus_file.is_file():
            corpus = json.loads(corpus_file.read_bytes())
            info |= {name: corpus[name] for name in ("identity", "licences", "totals") if name in corpus}
        return info


def _read_train_split(manifest: Path) -> tuple[Path, ...]:
    try:
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        return tuple(manifest.parent / row["file"] for row in rows if row.get("split", "train") == "train")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CodecError(f"{manifest} is damaged ({error!r}); rebuild the corpus or delete the manifest") from None


def fit_codec(corpus: FitCorpus, output: Path, *, on_progress: Callable[[int, str], None]) -> dict[str, Any]:
    """Fit encoder and decoder to a corpus and write both, with provenance.json, into `output`.

    Args:
        output: created if missing; `load_codec("mel_pca", path=output)` reads the result.
        on_progress: called with the clips read so far, of PASSES * len(corpus.files), and the part being fitted.

    Returns:
        The content of provenance.json.

    Raises:
        CodecError: there is too little audio, or `output` cannot be written or already contains a codec.
    """
    check_output(output)
    encoder = fit_mel_pca(corpus, corpus.mel, on_progress=lambda clips: on_progress(clips, "encoder"))
    read = len(corpus.files)
    decoder = fit_linear_decoder(
        corpus, MelPcaEncoder(encoder), on_progress=lambda clips: on_progress(read + clips, "decoder")
    )
    info = make_provenance(corpus, encoder, decoder)
    try:
        output.mkdir(parents=True, exist_ok=True)
        encoder.save(output / ENCODER_FILE)
        decoder.save(output / DECODER_FILE)
        text = json.dumps(info, indent=2, ensure_ascii=False)
        (output / PROVENANCE_FILE).write_text(text + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise _not_writable_error(output, getattr(error, "strerror", None) or str(error)) from None
    return info


def check_output(output: Path) -> None:
    """Check before the fit that a folder is writable and contains no codec; raise CodecError otherwise.

    Overwriting a codec would leave datasets encoded with the old one without a decoder.
    """
    existing = [name for name in OUTPUT_FILES if (output / name).exists()]
    if existing:
        raise CodecError(f"{output} already contains a codec ({existing[0]}); choose another --output or delete it")
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise _not_writable_error(output, f"{nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _not_writable_error(output, f"no permission to write in {nearest}")


def _not_writable_error(output: Path, detail: str) -> CodecError:
    return CodecError(f"cannot write the codec to {output} ({detail}); choose another --output")


def make_provenance(corpus: FitCorpus, encoder: TensorFile, decoder: TensorFile) -> dict[str, Any]:
    """Return the provenance of the weights: data, command, settings, versions and hashes."""
    return {
        "what": "mel_pca codec: PCA of log-mel frames (encoder), linear map to STFT magnitudes (decoder)",
        "command": "presto codec fit <corpus folder> --output <folder>",
        "data": corpus.describe(),
        "encoder": {"file": ENCODER_FILE, "digest": encoder.digest, "settings": encoder.settings},
        "decoder": {"file": DECODER_FILE, "digest": decoder.digest, "settings": decoder.settings},
        "versions": {name: version(name) for name in VERSIONED_PACKAGES},
    }
