"""`presto codec roundtrip`: what a codec makes of your music, to hear, to see and in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.console import console, make_printable, print_table, print_warning
from pipelines.evaluate.spectrograms import check_spectrograms, plot_spectrograms_with_axes
from pipelines.inference.clip_audio import encode_wav
from pipelines.inference.clip_files import make_file_stem, write_clip_set
from presto_core.artifacts.durable import make_folders
from presto_core.audio.chunks import AudioError, Waveform, decode_blocks, is_audio
from presto_core.audio.codec import Codec
from presto_core.audio.load_codec import load_codec
from presto_core.audio.loudness import LoudnessMatch, choose_target, match_loudness, measure_level
from presto_core.audio.round_trip import RoundTrip, RoundTripQuality, measure_round_trip, run_round_trip
from presto_core.config.data import CodecConfig
from presto_core.errors import UserError

ORIGINAL, DECODED = "original", "roundtrip"
PCM_BYTES, LATENT_BYTES = 2, 2  # per value: 16-bit audio, and float16 as data sets store latents
HIDDEN_PREFIX = "._"  # of macOS's resource forks


@dataclass(frozen=True)
class RoundTripOptions:
    """Which part of each file, and where the results go."""

    output: Path
    start_seconds: float = 0.0
    seconds: float = 30.0


@dataclass(frozen=True)
class RoundTripResult:
    """One file's round trip: what was measured, and the files written."""

    file: Path
    codec: Codec
    trip: RoundTrip
    quality: RoundTripQuality
    gains_db: tuple[float, float]
    written: list[Path]

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of the audio as 16-bit PCM, and of its latents as a data set stores them."""
        return self.trip.original.numel() * PCM_BYTES, self.trip.latents.numel() * LATENT_BYTES

    def to_dict(self) -> dict[str, object]:
        """Return the form for --json; a number that there is none of is None."""
        codec, quality, (audio_bytes, latent_bytes) = self.codec, self.quality, self.sizes
        numbers = {
            "mel_error_db": quality.mel_error_db,
            "snr_db": quality.snr_db,
            "loudness_lufs": quality.loudness_lufs,
            "loudness_change_lu": quality.loudness_change_lu,
        }
        return {
            "file": make_printable(str(self.file)),
            "seconds": self.trip.original.shape[-1] / codec.sample_rate_hz,
            "sample_rate_hz": codec.sample_rate_hz,
            "channels": self.trip.original.shape[0],
            "latents": list(self.trip.latents.shape),
            "frames_per_second": codec.sample_rate_hz / codec.hop,
            "audio_bytes": audio_bytes,
            "latent_bytes": latent_bytes,
            **{name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()},
            "written": [make_printable(str(path)) for path in self.written],
        }


def run(paths: list[Path], settings: CodecConfig, options: RoundTripOptions) -> list[RoundTripResult]:
    """Encode and decode the beginning of each file, write both sides and their spectrograms, and return the numbers.

    Raises:
        UserError: a path is missing, no file can be used (others are named and left out), or the output cannot be
            written.
    """
    files = list_files(paths)
    codec = load_codec(settings.kind, path=settings.path or None)
    _make_folder(options.output)
    can_plot = check_spectrograms("codec roundtrip", len(files))
    results, bad = [], dict[Path, str]()
    for file in files:
        try:
            audio = read_audio(file, codec, options)
        except (AudioError, OSError) as error:
            bad[file] = getattr(error, "strerror", None) or str(error)
            continue
        results.append(_convert(file, audio, codec, options.output, can_plot=can_plot))
    if bad:
        message = "; ".join(f"{make_printable(str(file))}: {why}" for file, why in bad.items())
        if not results:
            raise UserError(f"codec roundtrip: {message}; give audio files, or folders of them")
        print_warning(f"codec roundtrip: left out {len(bad)} of {len(files)} files: {message}")
    return results


def _make_folder(output: Path) -> None:
    if "://" in str(output) or ":/" in str(output):
        raise UserError(f"--output {output} is no folder of this machine; name one such as .presto/roundtrip")
    try:
        make_folders(output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made a folder: {error.strerror}; name another") from None


def list_files(paths: list[Path]) -> list[Path]:
    """The files among the paths, and the audio files of the folders among them, once each.

    Raises:
        UserError: a path is missing, or a folder holds no audio.
    """
    files: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{make_printable(str(path))} does not exist; give audio files or folders of this machine, and "
                "settings such as codec.path=my_codec"
            )
        found = list(_iter_audio(path)) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{make_printable(str(path))} holds no audio files; give audio files, or folders of them")
        files |= dict.fromkeys(found)
    return list(files)


def _iter_audio(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if is_audio(path.name) and not path.name.startswith(HIDDEN_PREFIX) and path.is_file():
            yield path


def read_audio(file: Path, codec: Codec, options: RoundTripOptions) -> torch.Tensor:
    """Decode the chosen part of a file as the codec takes it: [A, N].

    Raises:
        AudioError: it is no audio, or ends before that part.
        OSError: it cannot be read.
    """
    rate_hz = codec.sample_rate_hz
    first, wanted = round(options.start_seconds * rate_hz), max(1, round(options.seconds * rate_hz))
    parts: list[Waveform] = []
    end = 0
    with file.open("rb") as stream:
        for block in decode_blocks(stream, sample_rate_hz=rate_hz, channels=codec.audio_channels):
            begin, end = end, end + len(block)
            parts.append(block[max(0, first - begin) : first + wanted - begin] if end > first else block[:0])
            if end >= first + wanted:
                break
    audio = np.concatenate(parts).T
    if not audio.size:
        raise AudioError(f"lasts {end / rate_hz:.2f} s, so nothing is left after --start {options.start_seconds:g}")
    return torch.from_numpy(np.ascontiguousarray(audio))


def _convert(file: Path, audio: torch.Tensor, codec: Codec, folder: Path, *, can_plot: bool) -> RoundTripResult:
    trip = run_round_trip(codec, audio)
    quality = measure_round_trip(trip, rate_hz=codec.sample_rate_hz)
    matches = _match_loudness(trip, codec.sample_rate_hz)
    wavs = {
        name: encode_wav(
            match.audio, codec.sample_rate_hz, title=f"{make_printable(file.name)}, {name}",
            details={"codec": codec.name, "digest": codec.digest, "gain_db": round(match.gain_db, 3)},
        )
        for name, match in matches.items()
    }  # fmt: skip
    titles = {ORIGINAL: make_printable(file.name), DECODED: f"encoded and decoded by {codec.name}"}
    drawn = {titles[name]: match.audio.mean(axis=0) for name, match in matches.items()}
    pictures = {DECODED: plot_spectrograms_with_axes(drawn, codec.sample_rate_hz)} if can_plot else {}
    try:
        written = write_clip_set(folder, make_file_stem(file.name), wavs, pictures)
    except OSError as error:
        raise UserError(f"cannot write to --output {folder}: {error.strerror}; name another folder") from None
    return RoundTripResult(file, codec, trip, quality, (matches[ORIGINAL].gain_db, matches[DECODED].gain_db), written)


def _match_loudness(trip: RoundTrip, rate_hz: int) -> dict[str, LoudnessMatch]:
    """Both sides at one loudness: the louder one always seems to be the better one."""
    sides = {ORIGINAL: trip.original.numpy(), DECODED: trip.decoded.numpy()}
    levels = [measure_level(side, rate_hz=rate_hz) for side in sides.values()]
    target = choose_target([lufs for lufs, _ in levels], [peak for _, peak in levels])
    return {name: match_loudness(side, rate_hz=rate_hz, target_lufs=target) for name, side in sides.items()}


def print_results(results: list[RoundTripResult]) -> None:
    """Print a small table per file, and the mean of the mel error of several."""
    for result in results:
        print_table(str(result.file), None, [list(pair) for pair in describe_result(result).items()])
    if len(results) > 1:
        mean = np.mean([result.quality.mel_error_db for result in results])
        console.print(f"codec roundtrip: {len(results)} files, mean mel error {mean:.2f} dB")


def describe_result(result: RoundTripResult) -> dict[str, str]:
    """What is printed of one file."""
    codec, quality, (channels, samples) = result.codec, result.quality, result.trip.original.shape
    audio_bytes, latent_bytes = result.sizes
    latent_channels, frames = result.trip.latents.shape
    change = quality.loudness_change_lu
    return {
        "codec": f"{codec.name}, digest {codec.digest[:12]}",
        "audio": f"{samples / codec.sample_rate_hz:.2f} s at {codec.sample_rate_hz} Hz, "
        + {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels"),
        "latents": f"{latent_channels} x {frames}, {codec.sample_rate_hz / codec.hop:.2f} frames per second",
        "compression": f"{_format_bytes(audio_bytes)} (16-bit audio) to {_format_bytes(latent_bytes)} (float16), "
        f"{audio_bytes / latent_bytes:.1f} x",
        "mel error": f"{quality.mel_error_db:.2f} dB, mean over 100 bands; lower is better",
        "SNR": _describe_snr(quality.snr_db),
        "loudness": "too soft or too short to measure"
        if change is None
        else f"{quality.loudness_lufs:.1f} LUFS, {change:+.1f} LU after the round trip",
        "files play": "at equal loudness: {:+.1f} dB and {:+.1f} dB".format(*result.gains_db),
        "written": "\n".join(map(str, result.written)),
    }


def _describe_snr(snr_db: float | None) -> str:
    if snr_db is None:
        return "none: the original is silent"
    return f"{snr_db:.1f} dB of the waveform; -3 dB if the phase is not kept"


def _format_bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
