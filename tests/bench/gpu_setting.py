"""What `tests.bench.gpu` measures: a network, its budget and a decoder at the size of a preset, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipelines.presets.resolve import PRESETS
from presto_core.config.layers import PrestoLSBudget
from presto_core.config.loader import load_config
from presto_core.config.schema import StepsStage, TeacherStage
from presto_core.config.sections import NetworkConfig
from presto_core.networks.dit import DiT
from presto_core.networks.layer_budget import LayerBudget
from tests.bench.iteration import CHANNELS, TEXT_DIM


@dataclass(frozen=True)
class Setting:
    """What is measured, and on what.

    Attributes:
        compiles: also measure what takes minutes to compile.
        rows: of a step of distillation, all in one pass.
    """

    preset: str
    device: torch.device
    frames: int
    calls: int
    rows: int
    compiles: bool

    @property
    def network(self) -> NetworkConfig:
        network = load_config(TeacherStage, self.preset, [], preset_folder=PRESETS).network
        return network.model_copy(update={"frame_rate": 44100 / 2048})


def make_budget(setting: Setting) -> LayerBudget:
    steps = load_config(StepsStage, setting.preset, [], preset_folder=PRESETS).steps
    return LayerBudget.from_distribution(steps.p_gen, steps.budget or PrestoLSBudget(), depth=setting.network.depth)


def make_network(setting: Setting, budget: LayerBudget | None = None) -> DiT:
    """A network whose weights are all random: products with zeros may take another time."""
    torch.manual_seed(0)
    net = DiT.for_budget(setting.network, channels=CHANNELS, text_dim=TEXT_DIM, budget=budget)
    for weight in net.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    return net.to(setting.device)


def make_decoder(audio_channels: int) -> Any:
    from diffusers import AutoencoderOobleck

    return AutoencoderOobleck(audio_channels=audio_channels, sampling_rate=44100)
