"""Write a generator as torch.export programs, one per budget, with a JSON file that says how to sample with them.

Neither this package nor the network's source is needed to run them: `torch.export.load` reads a program. Prompts
are conditions here: a text encoder and a codec are not part of a program.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from presto_core.artifacts.durable import delete_leftovers, make_folders, name_partial
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.preconditions import Precondition
from presto_core.models.model_card import ModelCard
from presto_core.models.student_folder import ExportError
from presto_core.networks.network import Network
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import list_few_step_levels

SETTINGS, EXAMPLE = "sampler.json", "example.safetensors"
STEPS = tuple(range(1, 9))
EXAMPLE_STEPS, TOLERANCE = 4, 1e-4  # of fp32, relative to the largest value
RULE = (
    "x = noise * sigma_1; x0 = program(x, sigma_1, conditions); then for each further level: "
    "x = x0 + sigma_i * new noise; x0 = program(x, sigma_i, conditions); latents = x0 * std + mean, per channel"
)
CONDITIONS = ("pooled", "tokens", "mask", "tempo_bpm", "key", "keep", "timing")


class Program(nn.Module):
    """A denoiser whose conditions are separate tensors: (x, sigma, pooled, tokens, ...) -> x0."""

    def __init__(self, network: Network, precondition: Precondition) -> None:
        super().__init__()
        self.network, self.denoise = network, EDMDenoiser(network, precondition)

    def forward(self, x: Tensor, sigma: Tensor, *conditions: Tensor) -> Tensor:
        return self.denoise(x, sigma, Conditioning(*conditions))


@dataclass(frozen=True)
class ProgramFolder:
    """What was written.

    Attributes:
        files: budget -> program.
        error: largest difference of the example's latents between the programs, read back, and this package, relative
            to the largest value.
    """

    path: Path
    files: dict[int, str]
    error: float


def write_program_folder(
    network: Network, card: ModelCard, *, cond: Conditioning, target: Path, budget: int | None, model_id: str
) -> ProgramFolder:
    """Write programs of all budgets that the generator uses, or of one, read them back, and compare.

    Args:
        cond: conditions of one clip, for the example.
        target: new folder; nothing is left of it if the export fails.
        budget: number of blocks at every noise level; None keeps the model's own.

    Raises:
        ExportError: PyTorch cannot export the network, or the comparison fails.
        UserError: the budget is not between 1 and the depth.
    """
    table = None if budget else card.budget
    budgets = sorted(set(table.kept)) if table else [budget or card.depth]
    steps = {count: _list_steps(card, count, budget=budget) for count in STEPS}
    partial = name_partial(target)
    try:
        make_folders(partial)
        delete_leftovers(target.parent, names=[target.name])
        precondition = card.make_precondition()
        for blocks in budgets:
            torch.export.save(
                _export(Program(network.keep_blocks(blocks), precondition), card, cond), partial / _name_file(blocks)
            )
        example, error = _make_example(network, card, cond, partial, steps[EXAMPLE_STEPS])
        (partial / EXAMPLE).write_bytes(save(example))
        content = _describe(card, cond, steps, model_id)
        (partial / SETTINGS).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ProgramFolder(target, {blocks: _name_file(blocks) for blocks in budgets}, error)


def _name_file(blocks: int) -> str:
    return f"blocks_{blocks}.pt2"


def _list_steps(card: ModelCard, count: int, *, budget: int | None) -> list[dict[str, Any]]:
    """Return noise level and program of each step."""
    levels = list_few_step_levels(count, card.schedule_at(count)).tolist()
    table = card.budget
    return [
        {"sigma": level, "program": _name_file(budget or (table.blocks_at(level) if table else card.depth))}
        for level in levels
    ]


def _list_conditions(cond: Conditioning) -> list[tuple[str, Tensor]]:
    return [(name, value) for name in CONDITIONS if (value := getattr(cond, name)) is not None]


def _export(program: Program, card: ModelCard, cond: Conditioning) -> torch.export.ExportedProgram:
    """Trace a program, with the batch left open."""
    two = Conditioning.cat([cond, cond])  # a batch of one would be taken for a constant
    x = torch.zeros(2, card.channels, card.frames, device=cond.pooled.device)
    conditions = tuple(value for _, value in _list_conditions(two))
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = ({0: batch}, {0: batch}, tuple({0: batch} for _ in conditions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(
                program.eval(), (x, x.new_ones(2), *conditions), dynamic_shapes=shapes, strict=False
            )
        except Exception as error:  # whatever the tracer meets in a network that is not of this package
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"PyTorch {torch.__version__} cannot export this network: {reason}") from error


@torch.inference_mode()
def _make_example(
    network: Network, card: ModelCard, cond: Conditioning, folder: Path, steps: list[dict[str, Any]]
) -> tuple[dict[str, Tensor], float]:
    """Return an example's conditions, noise and latents, and how far the programs in the folder are from them."""
    device, shape = cond.pooled.device, (1, card.channels, card.frames)
    first, again = (torch.Generator(device).manual_seed(0) for _ in range(2))
    noise = torch.stack([torch.randn(shape, generator=first, device=device) for _ in steps])
    budgets = {step["sigma"]: int(Path(step["program"]).stem.rpartition("_")[2]) for step in steps}
    sigmas = torch.tensor(list(budgets), dtype=torch.float64)
    denoise, z = EDMDenoiser(network, card.make_precondition()), torch.randn(shape, generator=again, device=device)
    expected = ping_pong(denoise, z, sigmas, cond, generator=again, budget=budgets.__getitem__)
    conditions = dict(_list_conditions(cond))
    found = _run_programs(folder, steps, noise, tuple(conditions.values()))
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise ExportError(
            f"comparison failed: latents of the written programs and of this package differ by {error:.1e} of the "
            f"largest value; report this with the version of torch, {torch.__version__}"
        )
    example = {"noise": noise, "latents": card.denormalize(expected), **conditions}
    return {name: value.cpu().contiguous() for name, value in example.items()}, error


def _run_programs(folder: Path, steps: list[dict[str, Any]], noise: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
    """Sample with the programs of a folder, as its settings describe; noise: [K, B, C, T] -> x0 [B, C, T]."""
    programs = {name: torch.export.load(folder / name).module() for name in {step["program"] for step in steps}}
    x0 = torch.zeros_like(noise[0])
    for step, eps in zip(steps, noise, strict=True):
        x = x0 + step["sigma"] * eps
        x0 = programs[step["program"]](x, x.new_full((len(x),), step["sigma"]), *conditions)
    return x0


def _describe(card: ModelCard, cond: Conditioning, steps: Mapping[int, Any], model_id: str) -> dict[str, Any]:
    """Return what a program's user needs to know."""
    shapes = {"x": ["batch", card.channels, card.frames], "sigma": ["batch"]}
    inputs = [{"name": name, "shape": shape, "dtype": "float32"} for name, shape in shapes.items()]
    inputs += [
        {"name": name, "shape": ["batch", *value.shape[1:]], "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in _list_conditions(cond)
    ]
    return {
        "format": "presto-programs",
        "version": 1,
        "model": model_id,
        "torch": torch.__version__,
        "rule": RULE,
        "inputs": inputs,
        "steps": {str(count): listed for count, listed in steps.items()},
        "mean": card.mean,
        "std": card.std,
        "codec": {key: value for key, value in card.codec.items() if key != "path"},
        "text": {key: value for key, value in card.text.items() if key != "path"},
    }
