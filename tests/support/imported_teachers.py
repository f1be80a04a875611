"""What the tests of all families of imported teachers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.models.teacher_components import TeacherError
from presto_core.models.teacher_folder import TeacherFolder
from presto_core.models.teacher_import import load_network
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.layer_budget import LayerBudget
from presto_core.text.encoder import load_text_encoder

BUDGET = LayerBudget(kept=(2, 3, 4), edges=(30.0, 1.0), distribution={})


def load_conditioned(folder: TeacherFolder) -> DiffusersNetwork:
    """Load a network with an embedding of the budget that is not zero."""
    network = load_network(folder).with_budget(BUDGET).eval()
    assert network.budget_table is not None
    nn.init.normal_(network.budget_table, std=0.2, generator=torch.Generator().manual_seed(1))
    return network


def encode_prompts(folder: Path, prompts: Sequence[str], *, seconds: float, **encoder: Any) -> Conditioning:
    """Return the conditions of clips of `seconds`, by the folder's text encoder with these options."""
    text, rows = load_text_encoder("diffusers", path=str(folder), **encoder).encode(list(prompts)), len(prompts)
    return Conditioning(
        text.pooled, text.tokens, text.mask, torch.full((rows,), torch.nan), torch.full((rows,), UNKNOWN_KEY),
        torch.ones(rows, dtype=torch.bool), torch.tensor([[0.0, seconds]]).repeat(rows, 1),
    )  # fmt: skip


def load_pipeline(folder: Path, **components: Any) -> Any:
    """Load the stock pipeline, silent."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(folder), **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def expect_refusal(named: str) -> Iterator[None]:
    """Expect that a teacher is refused in one line with these words, before any weights are loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", None)
        with pytest.raises(TeacherError) as refused:
            yield
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
