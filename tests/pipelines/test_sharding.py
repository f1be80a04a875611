"""Sharded networks equal replicated ones up to rounding, also in checkpoints, which load with any sharding."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from pyarrow.fs import LocalFileSystem
from torch import Tensor, distributed
from torch.distributed.fsdp import fully_shard

from pipelines.train.parallel import make_single_process
from presto_core.artifacts import resumable_read
from presto_core.artifacts.folder import Folder
from presto_core.config.sections import LoopConfig, ParallelConfig
from presto_core.training.checkpoint import load_checkpoint
from presto_core.training.ema import Ema
from presto_core.training.sharding import local_shard
from presto_core.training.state import TrainState
from tests.core.test_checkpoint import read_memory
from tests.support.checkpoints import save_checkpoint
from tests.support.process_group import (
    ALGORITHMS,
    SHARDED,
    difference,
    double_precision,
    join_group,
    result,
    run,
    run_in_processes,
)

FP64 = 1e-10  # of a tensor's largest number
STOPPED_AT = 2  # after the first generator update
NAMES = ("L", "S", "S, shared taps", "LS")
REPLICATED = ParallelConfig()
Results = dict[str, dict[str, Tensor]]


def run_every_way(folder: str) -> dict[str, Results]:
    with double_precision():
        return {"sharded": {name: result(name, join_group(SHARDED)) for name in NAMES}} | {
            "saving memory": {"LS": run_saving_memory("LS")},
            "saved sharded, loaded whole": {"LS": stop_and_resume("LS", f"{folder}/sharded", SHARDED, REPLICATED)},
            "saved whole, loaded sharded": {"LS": stop_and_resume("LS", f"{folder}/whole", REPLICATED, SHARDED)},
        }


def run_saving_memory(name: str) -> dict[str, Tensor]:
    """Run with every option that trades time for memory."""
    config = SHARDED.model_copy(update={"offload_real_score": True})
    return result(name, join_group(config, activation_checkpointing=True), micro_batch_size=3)


def stop_and_resume(name: str, path: str, before: ParallelConfig, after: ParallelConfig) -> dict[str, Tensor]:
    """Stop, save, and resume with workers that place the networks differently."""
    folder = Folder(LocalFileSystem(), path, path)
    first, second = ALGORITHMS[name](join_group(before)), ALGORITHMS[name](join_group(after))
    first.total_steps = STOPPED_AT
    run(first, join_group(before))
    if join_group(before).rank == 0:
        save_checkpoint(folder, first.state, keep=1)
    elif first.state.is_sharded:
        first.state.state_dict()
    distributed.barrier()
    assert load_checkpoint(folder, second.state)
    assert (first.state.is_sharded, second.state.is_sharded) == (before is SHARDED, after is SHARDED)
    return run(second, join_group(after))


@pytest.fixture(scope="module")
def joined() -> Results:
    with double_precision():
        return {name: result(name, make_single_process(LoopConfig())) for name in NAMES}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """Results of rank 0 of two."""
    folder = tmp_path_factory.mktemp("group")
    return run_in_processes(2, run_every_way, folder / "two", str(folder / "checkpoints"))[0]


@pytest.mark.parametrize("name", NAMES)
def test_sharded_networks_end_as_the_joined_batch_makes_them(name: str, joined: Results, of_two: dict[str, Results]):
    assert difference(joined[name], of_two["sharded"][name]) < FP64


def test_what_saves_memory_changes_nothing(joined: Results, of_two: dict[str, Results]):
    """Micro-batches, recomputed activations and an offloaded real score at once."""
    assert difference(joined["LS"], of_two["saving memory"]["LS"]) < FP64


@pytest.mark.parametrize("way", ["saved sharded, loaded whole", "saved whole, loaded sharded"])
def test_a_run_resumes_under_another_sharding(way: str, joined: Results, of_two: dict[str, Results]):
    later = of_two[way]["LS"]
    assert {k for k in joined["LS"] if not k.startswith(("step 1:", "step 2:"))} == later.keys()
    assert difference({k: joined["LS"][k] for k in later}, later) < FP64


def measure_resume(path: str) -> dict[str, Tensor]:
    """Resume twelve sharded matrices with their moments; return this worker's additional and lasting bytes."""
    resumable_read.BLOCK_BYTES = 2**20  # in proportion to so small a state
    parallel, folder = join_group(SHARDED), Folder(LocalFileSystem(), path, path)
    network = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(12)))
    ema = Ema(network, 0.9)
    fully_shard(network)
    ema.shard_like(network)

    def make_state() -> TrainState:
        return TrainState({"net": network}, {"net": torch.optim.AdamW(network.parameters())}, {"net": ema})

    state = make_state()
    network(torch.ones(1, 1024)).sum().backward()
    state.optimizers["net"].step()
    state.optimizers["net"].zero_grad()
    if parallel.rank == 0:
        save_checkpoint(folder, state, keep=1)
    else:
        state.state_dict()
    distributed.barrier()
    del state
    gc.collect()
    state = make_state()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = read_memory("VmRSS")
    assert load_checkpoint(folder, state)
    extra = read_memory("VmHWM") - before
    tensors = [*ema.network.parameters(), *(m for p in state.optimizers["net"].state.values() for m in p.values())]
    kept = sum(local_shard(tensor).untyped_storage().nbytes() for tensor in tensors)
    return {"extra": torch.tensor(extra), "kept": torch.tensor(kept)}


def test_a_worker_resumes_with_little_more_memory_than_its_shards(tmp_path: Path):
    """The weights and their average are there before, the two moments, half of the state, are not."""
    share = 4 * 12 * 4 * 1024**2 // 2  # of weights, average and two moments, for each of two workers
    for worker in run_in_processes(2, measure_resume, tmp_path / "two", str(tmp_path / "checkpoints")):
        assert worker["extra"] <= 0.5 * share + 0.2 * share
        assert worker["kept"] <= 0.75 * share + 1024
