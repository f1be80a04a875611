"""Load what makes conditions from a teacher's folder: its projection model, or what its condition encoder computes."""

from __future__ import annotations

import copy

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from presto_core.models.teacher_components import ComponentFiles, TeacherError
from presto_core.models.teacher_folder import TeacherFolder
from presto_core.models.teacher_kind import keep_settings
from presto_core.networks.ace_step_conditioner import AceStepConditioner
from presto_core.networks.diffusers_network import Conditioner, DiffusersNetwork
from presto_core.text.ace_step_encoder import AceStepEncoder


def load_conditioner(conditioner: Conditioner, folder: TeacherFolder) -> None:
    """Fill a conditioner with the folder's weights; raises TeacherError."""
    if not isinstance(conditioner, AceStepConditioner):
        if conditioner.projection is not None:
            assert folder.projection is not None
            load_weights(conditioner.projection, folder.projection)
        return
    assert folder.projection is not None
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder

    encoder = AceStepConditionEncoder(**keep_settings(folder.projection.settings)).float()
    load_weights(encoder, folder.projection)
    text = AceStepEncoder(folder.path, max_tokens=folder.text_tokens, frames=folder.frames)
    rate_hz, hop, _ = folder.kind.read_audio(folder.parts)
    conditioner.fill(encoder, text.embed_lyrics(), frames_per_second=float(rate_hz) / float(hop))


def compare_conditioner(folder: TeacherFolder, network: DiffusersNetwork) -> float:
    """Return how far the folder's conditioner is from a network's, relative to the largest value of each weight.

    Raises:
        TeacherError: its settings are others.
    """
    assert network.conditioner is not None
    if folder.kind.read_conditioner(folder.path, folder.parts) != network.config.conditioner:
        raise TeacherError(f"{folder.kind.projection} of {folder.path} has other settings than the model's")
    own, loaded = network.conditioner.state_dict(), copy.deepcopy(network.conditioner).cpu()
    load_conditioner(loaded, folder)
    return max(
        float((value - own[name].cpu()).abs().max() / own[name].abs().max().clamp(min=1e-12))
        for name, value in loaded.state_dict().items()
    )


def load_weights(module: nn.Module, component: ComponentFiles) -> None:
    """Load a component's weights in fp32; raises TeacherError if they are damaged or of another model."""
    try:
        state = {name: value.float() for path in component.weights for name, value in load_file(path).items()}
        module.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TeacherError(
            f"weights of {component.name} do not fit its settings ({reason}); download it again"
        ) from None
    if bad := next((name for name, value in state.items() if not value.isfinite().all()), None):
        raise TeacherError(f"weight {bad} of {component.name} is not finite; download the teacher again")
