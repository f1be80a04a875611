"""Decode mutated sound files in a process of its own, and list what is lost, crashes, hangs or needs much memory.

    python -m tests.support.decoder_fuzz --each 200 --seed 1 --only wav,flac

FFmpeg, by PyAV, says how much music a mutated file holds.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from pipelines.ingest.tags import read_tag_caption
from presto_core.audio.chunks import decode_blocks
from presto_core.audio.pyav_decoder import DEMUXERS
from presto_core.audio.sound import AudioError
from tests.support.sound_examples import WRITERS, make_samples

TOLERANCE, SLACK_SECONDS = 0.01, 0.08  # decoders differ by the delay and the padding of codecs: three frames
MAX_CPU_SECONDS, MAX_GROWTH_MB, ADDRESS_SPACE_MB = 4.0, 96, 3072
HEADER_BYTES = 200
SIZES = (0, 1, 2, 2**15, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass(frozen=True)
class Finding:
    """What went wrong with a mutated file; format, seed and number make it again.

    Attributes:
        kind: lost, crashed, slow or large.
    """

    form: str
    seed: int
    number: int
    mutation: str
    kind: str
    detail: str


def mutate(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Return the name of a mutation, with its numbers, and the mutated file."""
    names = list(MUTATIONS)
    name = names[int(rng.integers(len(names)))]
    detail, mutated = MUTATIONS[name](content, rng)
    return f"{name} {detail}", mutated


def _flip(content: bytes, rng: np.random.Generator, *, stop: int, count: int) -> tuple[str, bytes]:
    changed, positions = bytearray(content), rng.integers(0, stop, count)
    for position in positions:
        changed[position] ^= int(rng.integers(1, 256))
    return f"at {sorted(map(int, positions))}", bytes(changed)


def _flip_header(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    return _flip(content, rng, stop=min(HEADER_BYTES, len(content)), count=int(rng.integers(1, 4)))


def _flip_any(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    return _flip(content, rng, stop=len(content), count=int(rng.integers(1, 12)))


def _set_size(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Write an extreme number, as a header would hold it."""
    position, value = int(rng.integers(0, HEADER_BYTES)), SIZES[int(rng.integers(len(SIZES)))]
    order = "<>"[int(rng.integers(2))]
    return f"{value} at {position} as {order}", content[:position] + struct.pack(f"{order}I", value) + content[
        position + 4 :
    ]


def _truncate(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    position = int(rng.integers(1, len(content)))
    return f"at {position} of {len(content)}", content[:position]


def _cut_out(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    position, count = int(rng.integers(0, len(content))), int(rng.integers(1, 20_000))
    return f"{count} at {position}", content[:position] + content[position + count :]


def _zero(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    position, count = int(rng.integers(0, len(content))), int(rng.integers(1, 20_000))
    count = len(content[position : position + count])
    return f"{count} at {position}", content[:position] + bytes(count) + content[position + count :]


def _insert(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    position, count = int(rng.integers(0, len(content))), int(rng.integers(1, 20_000))
    return f"{count} at {position}", content[:position] + rng.bytes(count) + content[position:]


def _append_noise(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    count = int(rng.integers(1, 20_000))
    return f"{count}", content + rng.bytes(count)


def _prepend_tag(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    count = int(rng.integers(1, 5000))
    size = bytes(count >> shift & 0x7F for shift in (21, 14, 7, 0))
    return f"of {count}", b"ID3\4\0\0" + size + bytes(count) + content


def _join(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    return "with itself", content + content


MUTATIONS: dict[str, Callable[[bytes, np.random.Generator], tuple[str, bytes]]] = {
    "flip in the header": _flip_header,
    "flip anywhere": _flip_any,
    "write a size": _set_size,
    "truncate": _truncate,
    "cut out": _cut_out,
    "write zeros": _zero,
    "insert noise": _insert,
    "append noise": _append_noise,
    "prepend a tag": _prepend_tag,
    "join": _join,
}


def measure_with_ffmpeg(content: bytes) -> float:
    """Return the seconds that FFmpeg decodes, past damaged packets; 0 if it opens nothing."""
    samples: dict[int, int] = {}
    options = {"format_whitelist": f"{DEMUXERS},au,w64", "protocol_whitelist": ""}
    try:
        with av.open(io.BytesIO(content), container_options=options) as container:
            for packet in container.demux(container.streams.audio[0]):
                try:
                    for frame in packet.decode():
                        samples[frame.sample_rate] = samples.get(frame.sample_rate, 0) + frame.samples
                except (av.FFmpegError, ValueError):
                    continue
    except (av.FFmpegError, ValueError, IndexError):
        pass
    return sum(count / rate for rate, count in samples.items() if rate)


def measure_with_product(content: bytes) -> float | None:
    """Return the seconds that the product decodes; None if it refuses the file."""
    try:
        return sum(map(len, decode_blocks(io.BytesIO(content), sample_rate_hz=8000, channels=1))) / 8000
    except AudioError:
        return None


def check(content: bytes, *, expected: float | None = None) -> tuple[str, str] | None:
    """Return the kind and detail of what goes wrong with a file, or None; `expected` seconds, if not FFmpeg's."""
    began, memory = time.process_time(), _peak_mb()
    try:
        read_tag_caption(io.BytesIO(content)).encode()
        seconds = measure_with_product(content)
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}"
    if (spent := time.process_time() - began) > MAX_CPU_SECONDS:
        return "slow", f"{spent:.1f} s"
    if (growth := _peak_mb() - memory) > MAX_GROWTH_MB:
        return "large", f"{growth} MB"
    expected = measure_with_ffmpeg(content) if expected is None else expected
    if seconds is not None and seconds < (1 - TOLERANCE) * expected - SLACK_SECONDS:
        return "lost", f"{seconds:.3f} of {expected:.3f} s"
    return None


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def fuzz(*, seed: int, each: int, only: tuple[str, ...] = (), notes: Path | None = None) -> tuple[int, list[Finding]]:
    """Return how many files were tried, and the findings; `notes` holds the file being tried, should decoders crash."""
    findings, tried = list[Finding](), 0
    samples = make_samples()
    for index, (form, write) in enumerate(WRITERS.items()):
        if only and form not in only:
            continue
        content = write(samples)
        for number in range(each):
            mutation, mutated = mutate(content, np.random.default_rng([seed, index, number]))
            if notes is not None:
                notes.write_text(f"{form}, seed {seed}, number {number}: {mutation}")
            tried += 1
            # FFmpeg itself reads the first of joined files alone
            expected = 2 * measure_with_ffmpeg(content) if mutated == content * 2 else None
            if problem := check(mutated, expected=expected):
                findings.append(Finding(form, seed, number, mutation, *problem))
                print(findings[-1], file=sys.stderr, flush=True)
    return tried, findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="mutated files per format")
    parser.add_argument("--only", default="", help="formats, separated by semicolons")
    parser.add_argument("--notes", type=Path, help="file that holds what is being tried")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_MB * 2**20,) * 2)
    av.logging.set_level(None)
    only = tuple(filter(None, args.only.split(";")))
    tried, findings = fuzz(seed=args.seed, each=args.each, only=only, notes=args.notes)
    json.dump({"tried": tried, "findings": [asdict(finding) for finding in findings]}, sys.stdout)


if __name__ == "__main__":
    main()
