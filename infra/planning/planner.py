"""Plan a preset: estimate the stages that train on a number of devices, and how they scale to 512."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.planning.device_model import DeviceModel, device_model_from_measured, device_model_from_specs
from infra.planning.estimate import StageEstimate, Training, estimate_stage
from infra.planning.measured import MeasuredDevice
from infra.planning.network_size import PlannedNetwork
from pipelines.train.device_specs import Device
from pipelines.workflows.demo import DEMO_FLOW, load_flow_configs
from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.config.schema import IngestStage, LayersStage, StepsStage, TeacherStage
from presto_core.config.sections import GanConfig, NetworkConfig
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.models.pretrained import NAMES
from presto_core.networks.flops import LatentShape

SIZES = (8, 16, 32, 64, 128, 256, 512)
INGEST_HOURS_PER_CORE_HOUR = 751  # hours of audio; measured in docs/data.md
CHANNELS = 64  # latent channels of both codecs
TEXT_DIM = 384  # of the built-in text encoder

DeviceModelFn = Callable[[Training, int, int], DeviceModel]  # (stage settings, workers, rows per worker) -> constants


@dataclass(frozen=True)
class ForeignTeacher:
    """A teacher to import: its network, and the shape of its clips."""

    name: str
    network: DiffusersNetworkConfig
    shape: LatentShape


def read_foreign_teacher(folder: str, seconds: float | None) -> ForeignTeacher:
    """Read the settings of a diffusers folder; weights need not be there.

    Raises:
        UserError: it is no teacher that can be imported.
    """
    from presto_core.models.teacher_folder import read_teacher_folder
    from presto_core.models.teacher_import import make_network_config
    from presto_core.text.diffusers_encoder import read_width

    found = read_teacher_folder(Path(folder), with_weights=False, seconds=seconds)
    width = read_width(found.components["text_encoder"].settings)
    shape = LatentShape(found.channels, found.frames, width, found.text_tokens)
    return ForeignTeacher(folder, make_network_config(found), shape)


@dataclass(frozen=True)
class PlanRequest:
    """What to plan.

    Attributes:
        configs: settings of the demo flow's stages by name; those that train are planned.
        gpus: training workers, one per device.
        device: None means this machine's CPU.
        foreign: a teacher to import, in place of the preset's network.
    """

    configs: dict[str, StageConfig]
    gpus: int
    device: Device | None
    node_gbit: float
    price_usd: float
    foreign: ForeignTeacher | None = None

    @property
    def teacher(self) -> str:
        """The teacher that exists and is distilled; empty if one is trained."""
        if self.foreign:
            return self.foreign.name
        reference = self.configs["S"].inputs.teacher
        return reference if reference in NAMES else ""

    @property
    def network(self) -> PlannedNetwork:
        return self.foreign.network if self.foreign else self.own_network

    @property
    def own_network(self) -> NetworkConfig:
        """The preset's network."""
        teacher = self.configs["teacher"]
        assert isinstance(teacher, TeacherStage)
        return teacher.network

    @property
    def gan(self) -> GanConfig:
        steps = self.configs["S"]
        assert isinstance(steps, StepsStage)
        return steps.steps.gan

    def shape(self, config: Training) -> LatentShape:
        if self.foreign:
            if config.data.crop_frames:
                raise UserError(
                    f"data.crop_frames={config.data.crop_frames} does not fit {self.foreign.name}, which always makes "
                    f"{self.foreign.shape.frames} frames; set it to 0"
                )
            return self.foreign.shape
        ingest = self.configs["ingest"]
        assert isinstance(ingest, IngestStage)
        frames = config.data.crop_frames or ingest.ingest.chunk_frames
        if frames % self.own_network.patch:
            raise UserError(
                f"{frames} latent frames are not a multiple of network.patch={self.own_network.patch}; "
                "set ingest.chunk_frames or data.crop_frames to a multiple of it"
            )
        return LatentShape(CHANNELS, frames, TEXT_DIM, ingest.text.max_tokens)

    @property
    def stages(self) -> dict[str, Training]:
        """The stages that train: L, S and LS, and the teacher unless one that exists is distilled."""
        left_out = {"ASE", "teacher"} if self.teacher else {"ASE"}
        found = {name: c for name, c in self.configs.items() if name not in left_out}
        return {n: c for n, c in found.items() if isinstance(c, TeacherStage | LayersStage | StepsStage)}


def make_plan_request(
    preset: str | None,
    overrides: list[str],
    *,
    gpus: int,
    device: Device | None,
    node_gbit: float,
    price: float | None,
    foreign: ForeignTeacher | None = None,
) -> PlanRequest:
    """Load the settings of every stage for `gpus` workers.

    Raises:
        ConfigError: a setting is invalid, or the workers cannot share a global batch evenly.
        UserError: an imported teacher is to be measured on this machine.
    """
    if foreign and device is None:
        raise UserError(
            f"--device here measures Presto's own network, and {foreign.name} is another; plan it for a data sheet's "
            "device, such as --device h100"
        )
    spread = [f"cluster.num_workers={gpus}", "cluster.min_workers=0"]
    if device:
        spread.append("cluster.gpus_per_worker=1")
    configs = load_flow_configs(preset, [*overrides, *spread])
    assumed = device.price_usd if device else 0.0
    return PlanRequest(configs, gpus, device, node_gbit, assumed if price is None else price, foreign)


def estimate_stages(request: PlanRequest, model_fn: DeviceModelFn) -> list[StageEstimate]:
    """Estimate each stage on the requested devices."""
    return [
        _estimate_for_request(
            request, name, config, model_fn, workers=request.gpus, rows=batch_of(config) // request.gpus
        )
        for name, config in request.stages.items()
    ]


def tabulate_scaling(request: PlanRequest, model_fn: DeviceModelFn) -> list[dict[str, Any]]:
    """Estimate 8 to 512 devices: with the same batch (strong scaling), and with a growing one (weak scaling)."""
    grown = []
    for workers in SIZES:
        stages = request.stages.items()
        row: dict[str, Any] = {"workers": workers}
        if all(batch_of(config) % workers == 0 for _, config in stages):
            same = [
                _estimate_for_request(
                    request, name, config, model_fn, workers=workers, rows=batch_of(config) // workers
                )
                for name, config in stages
            ]
            row |= {
                "hours": sum(o.hours for o in same),
                "cost_usd": sum(o.cost_usd for o in same),
                "bottleneck": max(same, key=lambda o: o.hours).bottleneck,
                "fits": all(o.fits for o in same),
            }
        rows = {name: max(batch_of(config) // request.gpus, 1) for name, config in stages}
        weak = [_estimate_for_request(request, n, c, model_fn, workers=workers, rows=rows[n]) for n, c in stages]
        alone = [_estimate_for_request(request, n, c, model_fn, workers=1, rows=rows[n]) for n, c in stages]
        longest = max(range(len(weak)), key=lambda i: weak[i].hours)
        row |= {
            "weak_samples_per_second": weak[longest].samples_per_second,
            "weak_efficiency": weak[longest].samples_per_second / (workers * alone[longest].samples_per_second),
            "weak_global_batch_size": weak[longest].global_batch_size,
            "read_mb_s": weak[longest].read_mb_s,
        }
        grown.append(row)
    return grown


def make_specs_model_fn(request: PlanRequest, measured: MeasuredDevice | None = None) -> DeviceModelFn:
    """Return a function that derives a stage's constants from the device's data sheet, or a file of measurements."""

    def device_model(config: Training, workers: int, rows: int) -> DeviceModel:
        bf16, shape = config.loop.autocast == "bf16", request.shape(config)
        if request.device is None:
            assert measured
            return device_model_from_measured(measured, request.network, shape, bf16=bf16)
        return device_model_from_specs(
            request.device,
            request.network,
            shape,
            bf16=bf16,
            gpus=workers,
            node_gbit=request.node_gbit,
            measured=measured,
        )

    return device_model


def batch_of(config: Training) -> int:
    if isinstance(config, TeacherStage):
        return config.teacher.global_batch_size
    return config.layers.global_batch_size if isinstance(config, LayersStage) else config.steps.global_batch_size


def ingest_core_hours(request: PlanRequest) -> float:
    """Return the CPU core-hours to decode and encode the preset's corpus."""
    corpus = request.configs["corpus"].corpus  # type: ignore[attr-defined]
    minutes = corpus.minutes + (corpus.validation_tracks + corpus.test_tracks) * corpus.test_seconds / 60
    return float(minutes) / 60 / INGEST_HOURS_PER_CORE_HOUR


def _estimate_for_request(
    request: PlanRequest, name: str, config: Training, model_fn: DeviceModelFn, *, workers: int, rows: int
) -> StageEstimate:
    made = estimate_stage(
        DEMO_FLOW[name].stage if name == "teacher" else f"{DEMO_FLOW[name].stage} ({name})",
        config,
        request.network,
        request.shape(config),
        model_fn(config, workers, rows),
        workers=workers,
        rows=rows,
        layered="layers" in DEMO_FLOW[name].inputs,
        memory_gb=request.device.memory_gb if request.device else 0.0,
        price_usd=request.price_usd,
    )
    # a CPU has no CUDA context, and the rest of the process is not counted
    return made if request.device else replace(made, memory=replace(made.memory, workspace=0.0))
