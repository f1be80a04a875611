"""A short piece of music in every format that this machine can write, for tests that damage files."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import av
import numpy as np
import soundfile

RATE_HZ, SECONDS = 48000, 5


def make_samples() -> np.ndarray:
    """Return [N, 2]: chords and noise of changing loudness, so that frames of variable rate differ in size."""
    rng = np.random.default_rng(0)
    time = np.arange(RATE_HZ * SECONDS) / RATE_HZ
    chord = sum(np.sin(2 * np.pi * hz * time) for hz in (220.0, 277.2, 329.6))
    loudness = 0.15 + 0.1 * np.sin(2 * np.pi * 0.4 * time)
    left = loudness * chord / 2 + 0.02 * rng.standard_normal(len(time))
    return np.stack([left, 0.8 * np.roll(left, 100)], axis=1).astype(np.float32)


def _write_with_libsndfile(samples: np.ndarray, *, form: str, subtype: str, **options: object) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE_HZ, format=form, subtype=subtype, **options)
    return stream.getvalue()


def _write_with_pyav(samples: np.ndarray, *, form: str, codec: str, **options: str) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format=form, options=options) as container:
        track = container.add_stream(codec, rate=RATE_HZ, layout="stereo")
        track.bit_rate = 128_000
        resampler = av.AudioResampler(format=track.format, layout="stereo", rate=RATE_HZ)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout="stereo")
        frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), 0
        for converted in resampler.resample(frame):
            container.mux(track.encode(converted))
        container.mux(track.encode(None))
    return stream.getvalue()


_sndfile, _pyav = partial(partial, _write_with_libsndfile), partial(partial, _write_with_pyav)
WRITERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "wav": _sndfile(form="WAV", subtype="PCM_16"),
    "wav, floats": _sndfile(form="WAVEX", subtype="FLOAT"),
    "wav, ADPCM": _sndfile(form="WAV", subtype="MS_ADPCM"),
    "rf64": _sndfile(form="RF64", subtype="PCM_16"),
    "w64": _sndfile(form="W64", subtype="PCM_16"),
    "aiff": _sndfile(form="AIFF", subtype="PCM_16"),
    "au": _sndfile(form="AU", subtype="PCM_16"),
    "caf": _sndfile(form="CAF", subtype="PCM_16"),
    "flac": _sndfile(form="FLAC", subtype="PCM_16"),
    "flac of ffmpeg": _pyav(form="flac", codec="flac"),
    "ogg vorbis": _sndfile(form="OGG", subtype="VORBIS"),
    "ogg opus": _sndfile(form="OGG", subtype="OPUS"),
    "ogg flac": _pyav(form="ogg", codec="flac"),
    "mp3, constant rate": _sndfile(form="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT"),
    "mp3, variable rate": _sndfile(
        form="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.3
    ),
    "mp3 of ffmpeg": _pyav(form="mp3", codec="libmp3lame"),
    "m4a": _pyav(form="ipod", codec="aac"),
    "m4a, lossless": _pyav(form="ipod", codec="alac"),
    "mp4, fragments": _pyav(form="mp4", codec="aac", movflags="frag_keyframe+empty_moov"),
    "aac": _pyav(form="adts", codec="aac"),
    "mka": _pyav(form="matroska", codec="flac"),
    "webm": _pyav(form="webm", codec="libopus"),
    "wma": _pyav(form="asf", codec="wmav2"),
    "wavpack": _pyav(form="wv", codec="wavpack"),
}
