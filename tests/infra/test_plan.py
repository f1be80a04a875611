"""`presto plan`: memory as autograd keeps it, times that add up, one message per mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from typer.testing import CliRunner

from infra.cli.main import app
from infra.planning.benchmark import measure_device
from infra.planning.device_model import device_model_from_specs
from infra.planning.estimate import REMEDIES, StageEstimate
from infra.planning.memory import GIB, activation_bytes, block_bytes, checkpoint_bytes, outer_bytes, state_bytes
from infra.planning.planner import (
    SIZES,
    PlanRequest,
    estimate_stages,
    make_plan_request,
    make_specs_model_fn,
    read_foreign_teacher,
)
from infra.planning.sizing_table import PAGE, replace_table
from infra.planning.step_time import Group, StepTime, step_time
from pipelines.presets.resolve import PRESETS
from pipelines.train.device_specs import DEVICES
from pipelines.train.step_flops import FORWARD_EQUIVALENTS, Pass, StageFlops, count_stage_flops
from presto_core.config.layers import blocks_per_bin
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.schema import LayersStage, StepsStage, TeacherStage
from presto_core.config.sections import LoopConfig, LoraConfig, NetworkConfig, ParallelConfig
from presto_core.errors import UserError
from presto_core.networks import block
from presto_core.networks.adapters import add_adapters
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.dit import DiT
from presto_core.networks.flops import LatentShape, num_parameters
from tests.core.test_flops import make_conditions
from tests.support.tiny_teachers import write_ace_step, write_longcat_audio, write_stable_audio

PAPER, SHAPE = load_config(TeacherStage, "paper", preset_folder=PRESETS).network, LatentShape(64, 689)
SHARDED = ParallelConfig(**dict.fromkeys(("teacher", "layers", "generator", "fake_score", "real_score"), "shard"))
REPLICATED = ParallelConfig()


def paper_stage_flops(stage: type[Any]) -> StageFlops:
    return count_stage_flops(load_config(stage, "paper", preset_folder=PRESETS), PAPER.depth)


def request_for(*overrides: str, preset: str = "paper", gpus: int = 8, device: str = "h100") -> PlanRequest:
    return make_plan_request(preset, list(overrides), gpus=gpus, device=DEVICES[device], node_gbit=400, price=None)


def estimate_preset(*overrides: str, **what: Any) -> dict[str, StageEstimate]:
    wanted = request_for(*overrides, **what)
    return dict(zip(wanted.stages, estimate_stages(wanted, make_specs_model_fn(wanted))))


def measure_saved_bytes(net: DiT, shape: LatentShape, rows: int, blocks: int, *, bf16: bool) -> int:
    """Return the bytes autograd keeps of a forward pass, each storage once, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    storages: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # so that no address is reused
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(rows, shape.channels, shape.frames)
    with saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        net(x, torch.zeros(rows), make_conditions(rows, shape), blocks)
    return sum(storages.values())


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (NetworkConfig(dim=96, depth=3, heads=3, patch=2, mlp_ratio=3), LatentShape(16, 96, 32, 12)),
        (NetworkConfig(dim=128, depth=3, heads=8, patch=1, mlp_ratio=4), LatentShape(16, 72, 32, 40)),
    ],
)
def test_activations_of_a_block_are_what_autograd_keeps(
    network: NetworkConfig, shape: LatentShape, bf16: bool, monkeypatch: pytest.MonkeyPatch
):
    # the plan is for GPUs, where attention in bf16 is the library's kernel
    monkeypatch.setattr(block, "attend", F.scaled_dot_product_attention)
    net = DiT(network, channels=shape.channels, text_dim=shape.text_dim)
    by_rows = [
        (measure_saved_bytes(net, shape, rows, 3, bf16=bf16) - measure_saved_bytes(net, shape, rows, 1, bf16=bf16)) / 2
        for rows in (2, 4)
    ]
    assert block_bytes(network, shape, bf16=bf16) == pytest.approx((by_rows[1] - by_rows[0]) / 2, rel=0.01)


@pytest.mark.parametrize(
    ("stage", "sharding", "gib"),
    [
        (LayersStage, REPLICATED, 10.7),
        (LayersStage, SHARDED, 1.5),
        (StepsStage, REPLICATED, 21.3),
        (StepsStage, SHARDED, 2.8),
    ],
)
def test_memory_of_weights_is_that_of_docs_parallelism(stage: type[Any], sharding: ParallelConfig, gib: float):
    """docs/parallelism.md leaves out gradient exchange buffers: 4 bytes per parameter of each trained network."""
    work = paper_stage_flops(stage)
    buffers = 0 if sharding is SHARDED else 4 * len(work.trained) * num_parameters(PAPER, SHAPE)
    state = state_bytes(work, PAPER, SHAPE, workers=8, sharding=sharding) - buffers
    assert state / GIB == pytest.approx(gib, abs=0.16)


def test_recomputed_and_smaller_micro_batches_keep_less():
    passes, loop = (Pass("teacher", "train", 1, 28),), LoopConfig()
    whole = activation_bytes(passes, PAPER, SHAPE, rows=8, loop=loop)
    recomputed = activation_bytes(passes, PAPER, SHAPE, rows=8, loop=replace_loop(loop, activation_checkpointing=True))
    assert recomputed < 0.15 * whole
    assert activation_bytes(passes, PAPER, SHAPE, rows=4, loop=loop) == pytest.approx(whole / 2)


def replace_loop(loop: LoopConfig, **changes: object) -> LoopConfig:
    return loop.model_copy(update=changes)


def time_of(stage: type[Any], *, workers: int, rows: int, **loop: object) -> StepTime:
    work = count_stage_flops(load_config(stage, "paper", preset_folder=PRESETS), PAPER.depth)
    pace = device_model_from_specs(DEVICES["h100"], PAPER, SHAPE, bf16=True, gpus=workers, node_gbit=400)
    return step_time(work, PAPER, SHAPE, pace, Group(workers, rows, LoopConfig(**loop), REPLICATED))


@pytest.mark.parametrize("stage", [TeacherStage, LayersStage, StepsStage])
def test_parts_add_up_and_grow_as_they_should(stage: type[Any]):
    alone, eight, many = (time_of(stage, workers=n, rows=32) for n in (1, 8, 64))
    assert sum(alone.parts.values()) == alone.total
    assert alone.exchange == alone.exchanged_bytes == alone.imbalance == 0
    assert 0 < eight.exchange < many.exchange
    assert alone.compute < 1.001 * eight.compute  # noise is drawn for all rows on each worker
    assert time_of(stage, workers=1, rows=64).compute == pytest.approx(2 * alone.compute, rel=0.05)
    assert time_of(stage, workers=1, rows=32, activation_checkpointing=True).compute > 1.2 * alone.compute
    assert time_of(stage, workers=1, rows=1).compute > alone.compute / 32  # kernels cannot start any faster


@pytest.mark.parametrize("workers", [2, 64])
def test_a_group_waits_for_the_worker_with_most_blocks(workers: int):
    """Compare with budgets drawn for every row; a row that skips blocks also has a forward pass at full depth."""
    rows, depth = 32, PAPER.depth
    kept = torch.tensor(blocks_per_bin(load_config(LayersStage, "paper", preset_folder=PRESETS).layers.budget, depth))
    rng = torch.Generator().manual_seed(0)
    drawn = kept[torch.randint(len(kept), (4000, workers, rows), generator=rng)]
    cost = (3.0 * drawn + depth * (drawn < depth)).sum(2)
    passes = (cost.amax(1) - cost.mean(1)).mean().item()
    pace = device_model_from_specs(DEVICES["h100"], PAPER, SHAPE, bf16=True, gpus=workers, node_gbit=400)
    waiting = time_of(LayersStage, workers=workers, rows=rows).imbalance
    assert waiting == pytest.approx(passes * pace.block["forward"].per_unit, rel=0.06)
    assert time_of(TeacherStage, workers=workers, rows=rows).imbalance == 0


def test_what_does_not_fit_is_reported_with_a_remedy():
    found = estimate_preset("loop.micro_batch_size=0")
    assert found["teacher"].fits
    assert not found["S"].fits
    assert found["S"].bottleneck == "memory"
    assert "loop.micro_batch_size" in found["S"].remedy
    fitting = estimate_preset()["S"]
    assert fitting.fits
    assert fitting.bottleneck in REMEDIES
    assert fitting.micro_batches == 4


def test_cost_follows_from_hours():
    dear = estimate_preset()["teacher"]
    assert dear.cost_usd == pytest.approx(dear.hours * 8 * DEVICES["h100"].price_usd)
    assert replace(dear, price_usd=0.0).cost_usd == 0
    assert 0.1 < dear.utilisation < 0.6
    assert dear.hours < estimate_preset(device="a100")["teacher"].hours < estimate_preset(device="l4")["teacher"].hours


def test_the_sizing_table_in_the_docs_is_the_models():
    page = (Path(__file__).parents[2] / PAGE).read_text()
    assert replace_table(page) == page


def run_plan(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=True)


def test_json_holds_stages_growth_and_assumptions():
    body = json.loads(run_plan("paper", "--json").stdout)
    assert [stage["name"] for stage in body["stages"]] == [
        "train-teacher",
        "distill-layers (L)",
        "distill-steps (S)",
        "distill-steps (LS)",
    ]
    assert [row["workers"] for row in body["growth"]] == list(SIZES)
    assert "hours" not in body["growth"][-1]  # 512 workers cannot share 256 rows
    assert all(0 < row["weak_efficiency"] <= 1 for row in body["growth"])
    assert any("60%" in assumption for assumption in body["assumptions"])
    assert {"compute", "update", "imbalance", "exchange", "reading", "checkpoint"} <= body["stages"][0]["step"].keys()


def test_tables_name_every_stage_and_the_assumptions():
    out = run_plan("paper", "--gpus", "8").stdout
    for fragment in (
        "train-teacher",
        "distill-steps (LS)",
        "bottleneck",
        "batch too small",
        "data sheet",
        "4 USD",
    ):
        assert fragment in out
    assert "8 x h100" in run_plan("paper", "--dry-run").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("paper", "--device", "h10"), "'h10'"),
        (("paper", "--gpus", "7"), "teacher.global_batch_size=256 must be a multiple of cluster.num_workers=7"),
        (("papier",), "papier"),
        (("paper", "layers.budget.kind=table", "layers.budget.kept=[40]"), "runs 40 blocks and the network has 28"),
        (("paper", "network.patch=2"), "network.patch=2"),
        (("demo", "--device", "here", "--gpus", "16", "cluster.torch_threads=64"), "1024"),
    ],
)
def test_mistakes_are_one_message(arguments: tuple[str, ...], message: str):
    error = run_plan(*arguments).exception
    assert isinstance(error, ConfigError | UserError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_a_plan_starts_without_torch_and_ray():
    script = "import sys; from typer.testing import CliRunner; from infra.cli.main import app\n"
    script += "result = CliRunner().invoke(app, ['plan', 'demo', '--gpus', '4'])\n"
    script += "print(result.exit_code, sorted({'torch', 'ray', 'mlflow', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0 []", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_constants_of_this_machine_are_measured(workers: int):
    network, shape = NetworkConfig(dim=32, depth=2, heads=2, patch=2), LatentShape(8, 32, 16, 4)
    pace = measure_device(network, shape, rows=4, workers=workers)
    for work in FORWARD_EQUIVALENTS:
        assert pace.block[work].seconds(4) > 0
        assert pace.head[work].seconds(4) > 0
    assert pace.block["train"].seconds(4) > pace.block["forward"].seconds(4)
    assert pace.update.seconds(10**6) > 0
    assert 0 < pace.exchange_bytes_s <= 1e12


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of a teacher of Stable Audio Open's class, without weights."""
    folder = write_stable_audio(tmp_path_factory.mktemp("teacher") / "random-audio")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


def test_a_teacher_to_import_is_planned_from_its_settings(foreign: Path):
    words = ("laptop", "--gpus", "2", "--teacher", str(foreign), "data.crop_frames=0")
    ran = run_plan(*words, "--json")
    assert ran.exception is None
    body = json.loads(ran.stdout)
    assert [stage["name"] for stage in body["stages"]] == [
        "distill-layers (L)",
        "distill-steps (S)",
        "distill-steps (LS)",
    ]
    assert all(stage["step"]["compute"] > 0 and stage["memory"]["activations"] > 0 for stage in body["stages"])
    out = run_plan(*words).stdout
    assert "network of width 64, 4 blocks" in out
    assert "tensors without data" in out
    for wrong, named in (
        ((*words, "--device", "here"), "--device h100"),
        ((*words, "data.crop_frames=16"), "data.crop_frames=16"),
        ((*words, "--seconds", "3"), "model.seconds=3"),
        (("laptop", "--seconds", "3"), "--teacher"),
        (("laptop", "--teacher", str(foreign / "vae")), "model_index.json"),
    ):
        refused = run_plan(*wrong)
        assert isinstance(refused.exception, UserError)
        assert named in str(refused.exception)


@pytest.mark.parametrize("write", [write_ace_step, write_longcat_audio])
def test_a_teacher_of_clips_of_any_length_is_planned(write: Callable[[Path], Path], tmp_path: Path):
    folder = write(tmp_path / "random-audio")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    words = ("laptop", "--gpus", "2", "--teacher", str(folder), "data.crop_frames=0", "--json", "--seconds")
    short, long = (json.loads(run_plan(*words, seconds).stdout)["stages"] for seconds in ("4", "16"))
    for less, more in zip(short, long, strict=True):
        assert 0 < less["step"]["compute"] < more["step"]["compute"]
        assert 0 < less["memory"]["activations"] < more["memory"]["activations"]


def test_activations_of_a_foreign_network_are_what_autograd_keeps(foreign: Path):
    teacher = read_foreign_teacher(str(foreign), None)
    network, shape = DiffusersNetwork(teacher.network), teacher.shape
    for bf16 in (False, True):
        kept = {
            (rows, blocks): measure_foreign_bytes(network, shape, rows, blocks, bf16=bf16)
            for rows in (1, 2)
            for blocks in (2, 4)
        }
        rows = [kept[2, blocks] - kept[1, blocks] for blocks in (2, 4)]
        assert block_bytes(teacher.network, shape, bf16=bf16) == pytest.approx((rows[1] - rows[0]) / 2, rel=0.01)
        whole = 2 * block_bytes(teacher.network, shape, bf16=bf16) + outer_bytes(teacher.network, shape, bf16=bf16)
        assert whole == pytest.approx(rows[0], rel=0.01)


def measure_foreign_bytes(network: DiffusersNetwork, shape: LatentShape, rows: int, blocks: int, *, bf16: bool) -> int:
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, cond = torch.randn(rows, shape.channels, shape.frames), make_conditions(rows, shape)
    cond = replace(cond, timing=torch.tensor([[0.0, 0.2]]).repeat(rows, 1))
    with saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        network(x, torch.full((rows,), 0.5), cond, blocks)
    return sum(storages.values())


@pytest.mark.parametrize("stage", [LayersStage, StepsStage])
def test_memory_of_adapters_is_that_of_the_networks_they_make(stage: type[Any]):
    """One frozen network, and of each trained one weights, gradients and moments of adapters."""
    network, shape = NetworkConfig(dim=64, depth=3, heads=4, patch=2), LatentShape(16, 32, 24, 8)
    section = "layers" if stage is LayersStage else "steps"
    config = load_config(stage, overrides={f"{section}.lora.rank": 4, f"{section}.lora.targets": ["attention"]})
    work = count_stage_flops(config, network.depth)
    net = DiT(network, channels=16, text_dim=24)
    adapted = add_adapters(net, LoraConfig(rank=4, targets=("attention",)))
    own = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert 0 < own < num_parameters(network, shape) / 5
    trained = {"layers": 1, "steps": 2}[section]
    expected = 4 * num_parameters(network, shape) + own * (16 * trained + 4)
    assert state_bytes(work, network, shape, workers=1, sharding=REPLICATED) == expected
    started = replace(work, layered=True)  # whose blocks are not the teacher's
    more = state_bytes(started, network, shape, workers=1, sharding=REPLICATED) - expected
    assert more == 4 * num_parameters(network, shape)
    assert checkpoint_bytes(work, network, shape) == own * (12 * trained + 4)
    slower = count_stage_flops(load_config(stage), network.depth)
    pace = device_model_from_specs(DEVICES["h100"], network, shape, bf16=True, gpus=8, node_gbit=400)
    sent = [
        step_time(each, network, shape, pace, Group(8, 4, LoopConfig(), REPLICATED)).exchanged_bytes
        for each in (work, slower)
    ]
    assert sent[0] < sent[1] / 5
