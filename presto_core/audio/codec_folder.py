"""From a folder of music to a folder of codec weights with their provenance: all that `presto codec fit` does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_core.audio.chunks import decode, is_audio
from presto_core.audio.codec import CodecError
from presto_core.audio.codec_fit import fit_linear_decoder, fit_mel_pca
from presto_core.audio.decoder_training import DecoderTraining, train_decoder
from presto_core.audio.magnitude_decoder import DecoderSettings
from presto_core.audio.mel_frames import MelSettings
from presto_core.audio.mel_pca import DECODER_FILE, ENCODER_FILE, MelPcaEncoder
from presto_core.audio.tensor_file import TensorFile

PROVENANCE_FILE = "provenance.json"
MANIFEST_FILE = "manifest.jsonl"
CORPUS_FILE = "corpus.json"
VERSIONED_PACKAGES = ("torch", "torchaudio", "soundfile", "soxr", "safetensors")
NETWORK = DecoderSettings(corrections=1, iterations=2, width=256, slow_blocks=4, fast_blocks=2)

Progress = Callable[[str, float, str], None]
"""Called with what is being done, the share of it that is done (0 to 1), and figures to show."""


@dataclass(frozen=True)
class FitCorpus:
    """The audio of a folder that a codec may learn from: the train split of its manifest, or every audio file.

    Iterating decodes one clip [N] at a time, so the corpus can be longer than memory, and can be read again.
    """

    folder: Path
    files: tuple[Path, ...]
    sample_rate_hz: int

    @staticmethod
    def open(folder: Path, *, sample_rate_hz: int) -> FitCorpus:
        """Raises CodecError when there is nothing to learn from."""
        manifest = folder / MANIFEST_FILE
        if manifest.is_file():
            rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
            files = tuple(folder / row["file"] for row in rows if row.get("split", "train") == "train")
        else:
            files = tuple(sorted(path for path in folder.rglob("*") if is_audio(path.name)))
        if not files:
            raise CodecError(f"{folder} holds no audio to fit a codec to: give a folder of music or a built corpus")
        return FitCorpus(folder, files, sample_rate_hz)

    def __iter__(self) -> Iterator[Tensor]:
        for path in self.files:
            with path.open("rb") as stream:
                yield torch.from_numpy(decode(stream, sample_rate_hz=self.sample_rate_hz))

    def described(self) -> dict[str, Any]:
        """What the data were, without naming this machine: counts, hashes, and the corpus's own record if any."""
        manifest, record = self.folder / MANIFEST_FILE, self.folder / CORPUS_FILE
        told: dict[str, Any] = {"clips": len(self.files), "split": "train"}
        if manifest.is_file():
            told["manifest_sha256"] = _sha256(manifest)
        if record.is_file():
            corpus = json.loads(record.read_bytes())
            told |= {name: corpus[name] for name in ("identity", "licences", "totals") if name in corpus}
        return told


def fit_codec(
    corpus_folder: Path,
    output: Path,
    *,
    mel: MelSettings | None = None,
    network: DecoderSettings | None = NETWORK,
    training: DecoderTraining | None = None,
    on_progress: Progress = lambda doing, share, figures: None,
) -> dict[str, Any]:
    """Fit encoder and decoder to a folder of music and write both, with provenance.json, into `output`.

    Args:
        corpus_folder: a built corpus (its train split is used) or any folder of audio files.
        output: made when missing; afterwards `load_codec("mel_pca", path=output)` reads it.
        network: the decoder's network; None keeps the closed-form linear decoder, which takes minutes, not an hour.

    Returns:
        What provenance.json holds.

    Raises:
        CodecError: too little audio. AudioError: a file that is no audio.
    """
    mel, training = mel or MelSettings(), training or DecoderTraining()
    corpus = FitCorpus.open(corpus_folder, sample_rate_hz=mel.sample_rate_hz)
    total = len(corpus.files)

    def counted(doing: str) -> Callable[[int], None]:
        return lambda clips: on_progress(doing, clips / total, f"{clips}/{total} clips")

    def trained(step: int, losses: dict[str, float]) -> None:
        figures = " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        on_progress("training the decoder", step / training.steps, figures)

    encoder_file = fit_mel_pca(corpus, mel, on_progress=counted("fitting the encoder"))
    encoder = MelPcaEncoder(encoder_file)
    decoder_file = fit_linear_decoder(corpus, encoder, on_progress=counted("fitting the linear decoder"))
    if network is not None:
        decoder_file = train_decoder(corpus, encoder, decoder_file, network, training, on_progress=trained)
    output.mkdir(parents=True, exist_ok=True)
    encoder_file.save(output / ENCODER_FILE)
    decoder_file.save(output / DECODER_FILE)
    told = provenance(corpus, encoder_file, decoder_file, training=training if network else None)
    (output / PROVENANCE_FILE).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return told


def provenance(
    corpus: FitCorpus, encoder: TensorFile, decoder: TensorFile, *, training: DecoderTraining | None
) -> dict[str, Any]:
    """Where the weights come from: data, command, settings, versions and hashes."""
    return {
        "what": "mel_pca codec: PCA of log-mel frames (encoder), linear map and network to STFT magnitudes (decoder)",
        "command": "presto codec fit <corpus folder> --output <folder>",
        "data": corpus.described(),
        "encoder": {"file": ENCODER_FILE, "digest": encoder.digest, "settings": encoder.settings},
        "decoder": {
            "file": DECODER_FILE,
            "digest": decoder.digest,
            "settings": decoder.settings,
            "training": asdict(training) if training else None,
        },
        "versions": {name: version(name) for name in VERSIONED_PACKAGES},
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
