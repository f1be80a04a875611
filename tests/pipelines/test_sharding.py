"""Sharded networks are the replicated ones but for rounding, also in checkpoints, which fit any sharding."""

from __future__ import annotations

import pytest
from pyarrow.fs import LocalFileSystem
from torch import Tensor, distributed

from presto_core.artifacts.folder import Folder
from presto_core.config.sections import ParallelConfig
from presto_core.training.checkpoint import load_checkpoint, save_checkpoint
from tests.support.process_group import (
    ALGORITHMS,
    SHARDED,
    alone,
    difference,
    double_precision,
    in_processes,
    result,
    run,
    together,
)

FP64 = 1e-10  # of a tensor's largest number
STOPPED_AT = 2  # after the first generator update
NAMES = ("L", "S", "LS")
REPLICATED = ParallelConfig()
Results = dict[str, dict[str, Tensor]]


def every_way(folder: str) -> dict[str, Results]:
    with double_precision():
        return {"sharded": {name: result(name, together(SHARDED)) for name in NAMES}} | {
            "saving memory": {"LS": saving_memory("LS")},
            "saved sharded, loaded whole": {"LS": resumed("LS", f"{folder}/sharded", SHARDED, REPLICATED)},
            "saved whole, loaded sharded": {"LS": resumed("LS", f"{folder}/whole", REPLICATED, SHARDED)},
        }


def saving_memory(name: str) -> dict[str, Tensor]:
    """With everything that trades time for memory at once."""
    config = SHARDED.model_copy(update={"offload_real_score": True})
    return result(name, together(config, activation_checkpointing=True), micro_batch_size=3)


def resumed(name: str, path: str, before: ParallelConfig, after: ParallelConfig) -> dict[str, Tensor]:
    """Stopped, saved, and gone on with by workers that hold the networks otherwise."""
    folder = Folder(LocalFileSystem(), path, path)
    first, second = ALGORITHMS[name](together(before)), ALGORITHMS[name](together(after))
    first.total_steps = STOPPED_AT
    run(first, together(before))
    if together(before).rank == 0:
        save_checkpoint(folder, first.state, keep=1)
    elif first.state.sharded:
        first.state.state_dict()
    distributed.barrier()
    assert load_checkpoint(folder, second.state)
    assert (first.state.sharded, second.state.sharded) == (before is SHARDED, after is SHARDED)
    return run(second, together(after))


@pytest.fixture(scope="module")
def joined() -> Results:
    with double_precision():
        return {name: result(name, alone()) for name in NAMES}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """What rank 0 of two has in the end."""
    folder = tmp_path_factory.mktemp("group")
    return in_processes(2, every_way, folder / "two", str(folder / "checkpoints"))[0]


@pytest.mark.parametrize("name", NAMES)
def test_sharded_networks_end_as_the_joined_batch_makes_them(name: str, joined: Results, of_two: dict[str, Results]):
    assert difference(joined[name], of_two["sharded"][name]) < FP64


def test_what_saves_memory_changes_nothing(joined: Results, of_two: dict[str, Results]):
    """Micro-batches, recomputed activations and an offloaded real score at once."""
    assert difference(joined["LS"], of_two["saving memory"]["LS"]) < FP64


@pytest.mark.parametrize("way", ["saved sharded, loaded whole", "saved whole, loaded sharded"])
def test_a_run_goes_on_under_another_sharding(way: str, joined: Results, of_two: dict[str, Results]):
    later = of_two[way]["LS"]
    assert {k for k in joined["LS"] if not k.startswith(("step 1:", "step 2:"))} == later.keys()
    assert difference({k: joined["LS"][k] for k in later}, later) < FP64
