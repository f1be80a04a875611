"""How fast rows come out of S3: Presto's stream against a bare Arrow read, webdataset and mosaicml-streaming.

As a program, a loader that waits for what it is to read, a URI and how many times:
`python -m tests.bench.data.reading <loader>`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from statistics import median

import torch

from pipelines.storage.filesystem import open_folder
from tests.bench.data import made_up
from tests.bench.data.child import Child, reply
from tests.bench.data.finding import Finding
from tests.bench.data.readers import PRESTO, READINGS

SHARDS = 72  # more rows than one shuffle window
TRIED_SHARDS = 14  # enough to choose settings by
SHORT_SHARDS = 2
EPOCHS = 4  # read on end; what the first one costs is told apart from the others
FIRST, LATER = "first epoch", "later epochs"
ALIKE = "every epoch, cluster.shard_cache_gb=0"  # what a stream that keeps nothing does in its later ones
AGAINST = {"pyarrow.parquet": 0.85, "pyarrow.dataset": 0.85, "webdataset": 1.0, "mosaicml-streaming": 1.0}
NOTE = (
    "throughput: rows of 64 x 258 latents and 40 x 384 tokens to float32 batches of 32. Of the first epoch's time that "
    f"of {SHORT_SHARDS} shards is taken off, for every loader alike: imports and the start of workers and Ray are out. "
    f"Later epochs: what {EPOCHS} on end take beyond one. Only presto shuffles, checks hashes and normalises; presto "
    "and mosaicml-streaming keep a copy of each shard on disk, and have none at first; pyarrow and webdataset keep "
    "nothing; the others' settings are the best of those tried"
)


def measure(root: str, *, rounds: int, scratch: Path) -> tuple[list[Finding], list[str]]:
    """Write the data in every format, choose each loader's settings, then read in turn."""
    long, tried, short = f"{root}/long", f"{root}/tried", f"{root}/short"
    for uri, shards in ((short, SHORT_SHARDS), (tried, TRIED_SHARDS), (long, SHARDS)):
        write_copies(uri, shards=shards, scratch=scratch / Path(uri).name)
    with ExitStack() as stack:
        chosen = {kind: stack.enter_context(_best(kind, tried, short)) for kind in AGAINST}
        ours = {name: stack.enter_context(Child("reading", name)) for name in PRESTO}
        rates = _rates(ours | chosen, long, short, rounds=rounds)
    findings = [
        Finding(
            f"{part if how.keeps else ALIKE}, cluster.reader={how.reader}",
            rates[name][part],
            "MB/s",
            chosen[kind].name.removeprefix("reading "),
            rates[kind][part],
            wanted=bound,
            bound="at least" if kind.startswith("pyarrow") else "above",
        )
        for name, how in PRESTO.items()
        for part in ((FIRST, LATER) if how.keeps else (LATER,))
        for kind, bound in AGAINST.items()
    ]
    return findings, [NOTE]


def write_copies(uri: str, *, shards: int, scratch: Path) -> None:
    """One data set in each loader's format."""
    shape = made_up.LAPTOP
    copies = [
        made_up.ParquetCopy(f"{uri}/presto", shape),
        made_up.TarCopy(open_folder(f"{uri}/tar")),
        made_up.MosaicCopy(f"{uri}/mds", shape, scratch),
    ]
    made_up.write(copies, shape, shards=shards)


def _best(kind: str, tried: str, short: str) -> Child:
    """The loader of a kind with the settings that are fastest here, ready to read."""
    seconds = {}
    for name in (name for name in READINGS if name.startswith(kind)):
        with Child("reading", name) as child:
            child.ask([short, 1])
            seconds[name] = child.ask([tried, 1]) - child.ask([short, 1])
    return Child("reading", min(seconds, key=lambda name: seconds[name]))


def _rates(children: dict[str, Child], long: str, short: str, *, rounds: int) -> dict[str, dict[str, float]]:
    """Median MB/s of each in its first and its later epochs, measured in turn; the start of a reading is taken out."""
    for child in children.values():
        child.ask([short, 1])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            start, one, all_ = child.ask([short, 1]), child.ask([long, 1]), child.ask([long, EPOCHS])
            seconds[name].append((one - start, all_ - one))
    shards = {FIRST: SHARDS - SHORT_SHARDS, LATER: (EPOCHS - 1) * SHARDS}
    megabytes = {part: n * made_up.ROWS_PER_SHARD * made_up.LAPTOP.row_bytes / 1e6 for part, n in shards.items()}
    return {
        name: {part: megabytes[part] / median(taken) for part, taken in zip(shards, zip(*values))}
        for name, values in seconds.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    name = sys.argv[1]
    session = _session() if name in PRESTO and PRESTO[name].reader == "ray" else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, session:
        for number, line in enumerate(sys.stdin):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            began = time.perf_counter()
            uri, epochs = json.loads(line)
            rows = sum(READINGS[name](uri, folder, epochs))
            seconds = time.perf_counter() - began
            shutil.rmtree(folder, ignore_errors=True)  # Ray's tasks may still keep what they read ahead; that goes last
            if rows % made_up.ROWS_PER_SHARD:
                raise RuntimeError(f"{name} read {rows} rows, which are no whole shards")
            reply(seconds)


def _session() -> AbstractContextManager[None]:
    from pipelines.cluster.session import ray_session, training_cpus
    from presto_core.config.sections import ClusterConfig

    cluster = ClusterConfig()
    return ray_session(cluster, cpus=training_cpus(cluster))


if __name__ == "__main__":
    main()
