"""Small random models of the real diffusers classes, and teacher folders as `save_pretrained` writes them."""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "StableAudioDiTModel": {
        "sample_size": 32, "in_channels": 8, "num_layers": 4, "attention_head_dim": 16, "num_attention_heads": 4,
        "num_key_value_attention_heads": 2, "out_channels": 8, "cross_attention_dim": 32, "time_proj_dim": 32,
        "global_states_input_dim": 48, "cross_attention_input_dim": 24,
    },
    "StableAudio3DiTModel": {
        "io_channels": 8, "embed_dim": 64, "depth": 4, "num_heads": 4, "cond_token_dim": 24, "global_cond_dim": 24,
        "local_add_cond_dim": 9, "timestep_features_dim": 32, "num_memory_tokens": 5,
    },
    "AceStepTransformer1DModel": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16, "in_channels": 24, "audio_acoustic_hidden_dim": 8, "patch_size": 2, "sliding_window": 4,
    },
    "LongCatAudioDiTTransformer": {"dit_dim": 64, "dit_depth": 4, "dit_heads": 4, "dit_text_dim": 24, "latent_dim": 8},
}  # fmt: skip
TEXT_DIM, TOKENS, CHANNELS, FRAMES = 24, 7, 8, 32


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight a random value of a useful size, also those that a class starts at zero."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=rng, dtype=torch.float64)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else p + 0.1 * noise)
    return module


def make_transformer(name: str, **changes: Any) -> nn.Module:
    import diffusers

    model: nn.Module = getattr(diffusers, name)(**TRANSFORMERS[name] | changes)
    return randomize(model)


def make_arguments(name: str, batch: int, frames: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return random conditions of a class, as the arguments of its forward pass."""
    rng = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    if name == "StableAudioDiTModel":
        return {"encoder_hidden_states": draw(batch, 7, 24), "global_hidden_states": draw(batch, 1, 48)}
    if name == "StableAudio3DiTModel":
        vector, mask = draw(batch, 24), torch.ones(batch, 8, dtype=torch.long)
        mask[:, 5:7] = 0
        tokens = torch.cat([draw(batch, 7, 24), vector[:, None]], 1)
        return {"encoder_hidden_states": tokens, "global_hidden_states": vector, "encoder_attention_mask": mask}
    if name == "AceStepTransformer1DModel":
        return {"encoder_hidden_states": draw(batch, 9, 64), "context_latents": draw(batch, frames, 16)}
    return {
        "encoder_hidden_states": draw(batch, 7, 24),
        "encoder_attention_mask": torch.ones(batch, 7, dtype=torch.bool),
        "latent_cond": torch.zeros(batch, frames, 8, dtype=dtype),
        "attention_mask": torch.ones(batch, frames, dtype=torch.bool),
    }


SCHEDULER = {
    "_class_name": "CosineDPMSolverMultistepScheduler", "prediction_type": "v_prediction",
    "sigma_data": 1.0, "sigma_max": 500, "sigma_min": 0.3, "sigma_schedule": "exponential", "solver_order": 2,
}  # fmt: skip


def write_stable_audio(folder: Path, *, licence: str = "apache-2.0", strides: tuple[int, ...] = (2, 4, 8)) -> Path:
    """Write a random Stable Audio teacher as its pipeline would, which itself needs torchsde; return the folder."""
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    parts = {
        "transformer": make_transformer("StableAudioDiTModel"),
        "projection_model": randomize(StableAudioProjectionModel(TEXT_DIM, TEXT_DIM, 0, 512)),
        "text_encoder": T5EncoderModel(T5Config(vocab_size=7, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
        "vae": make_oobleck(strides),
        "tokenizer": make_tokenizer(),
    }  # fmt: skip
    return save_stable_audio(folder, parts, licence=licence)


def save_stable_audio(folder: Path, parts: dict[str, Any], *, licence: str) -> Path:
    """Save the components of a Stable Audio pipeline with its index, scheduler and model page; return the folder."""
    for name, part in parts.items():
        part.save_pretrained(str(folder / name))
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {
        "_class_name": "StableAudioPipeline", "_diffusers_version": "0.42.1",
        "projection_model": ["stable_audio", "StableAudioProjectionModel"],
        "scheduler": ["diffusers", "CosineDPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "StableAudioDiTModel"],
        "vae": ["diffusers", "AutoencoderOobleck"],
    }  # fmt: skip
    write_json(folder / "model_index.json", index)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A random teacher\n")
    return folder


def make_oobleck(strides: tuple[int, ...]) -> Any:
    from diffusers import AutoencoderOobleck

    return AutoencoderOobleck(
        encoder_hidden_size=2 * CHANNELS, downsampling_ratios=list(strides), channel_multiples=[1] * len(strides),
        decoder_channels=CHANNELS, decoder_input_channels=CHANNELS, audio_channels=2, sampling_rate=8000,
    )  # fmt: skip


def make_tokenizer(*more_words: str, longest: int = TOKENS) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "piano", "slow", "jazz", "a", *more_words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=longest
    )


def write_stable_audio_3(folder: Path, *, licence: str = "apache-2.0", patch: int = 4, stride: int = 4) -> Path:
    """Write a random Stable Audio 3 teacher with its own pipeline, whose codec has hop patch x stride."""
    from diffusers import AutoencoderSAME, FlowMatchEulerDiscreteScheduler, StableAudio3Pipeline
    from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
    from transformers import T5GemmaConfig, T5GemmaEncoderModel

    torch.manual_seed(0)
    stack = {
        "vocab_size": 7, "hidden_size": TEXT_DIM, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    }  # fmt: skip
    text = T5GemmaConfig(encoder=dict(stack), decoder=dict(stack), is_encoder_decoder=False, vocab_size=7)
    vae = AutoencoderSAME(
        patch_size=patch, encoder_channels=8, encoder_c_mults=[2], encoder_strides=[stride],
        encoder_transformer_depths=[3], latent_dim=CHANNELS, dim_heads=8, sampling_rate=8000,
    )  # fmt: skip
    randomize(vae)
    for p in vae.bottleneck.parameters():
        p.data.clamp_(min=0.5)
    pipeline = StableAudio3Pipeline(
        vae=vae,
        text_encoder=T5GemmaEncoderModel(text),
        tokenizer=make_tokenizer(),
        duration_embedder=randomize(StableAudio3DurationEmbedder(output_dim=TEXT_DIM, fourier_dim=8)),
        transformer=make_transformer("StableAudio3DiTModel"),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
    pipeline.save_pretrained(str(folder))
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A random teacher\n")
    return folder


def write_ace_step(
    folder: Path, *, licence: str = "mit", strides: tuple[int, ...] = (4, 8, 8, 4), **transformer: Any
) -> Path:
    """Write a random ACE-Step teacher with its own pipeline, with the components of covers."""
    from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepAudioTokenizer, AceStepConditionEncoder
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    text = Qwen3Config(
        vocab_size=24, hidden_size=TEXT_DIM, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    sizes = {
        "hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "sliding_window": 4,
    }  # fmt: skip
    encoder = AceStepConditionEncoder(
        text_hidden_dim=TEXT_DIM, timbre_hidden_dim=CHANNELS, num_lyric_encoder_hidden_layers=2,
        num_timbre_encoder_hidden_layers=2, **sizes,
    )  # fmt: skip
    encoder.silence_latent.normal_()
    pipeline = AceStepPipeline(
        vae=make_oobleck(strides),
        text_encoder=Qwen3Model(text),
        tokenizer=make_tokenizer("Caption", "duration", "seconds", "Instrumental", "2", "4", "8", longest=131_072),
        transformer=make_transformer("AceStepTransformer1DModel", **transformer),
        condition_encoder=randomize(encoder, seed=1),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=AceStepAudioTokenizer(audio_acoustic_hidden_dim=CHANNELS, **sizes),
    )
    pipeline.save_pretrained(str(folder))
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A random teacher\n")
    return folder


def write_longcat_audio(
    folder: Path, *, licence: str = "mit", strides: tuple[int, ...] = (4, 4), inverted: bool = True
) -> Path:
    """Write a random LongCat-Audio teacher with its own pipeline, whose time runs from noise to data if inverted.

    The pipeline saves no scheduler, and makes an inverted one when it is loaded; another one is written beside it.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LongCatAudioDiTPipeline, LongCatAudioDiTVae
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    text = UMT5Config(vocab_size=7, d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    vae = LongCatAudioDiTVae(
        channels=2 * CHANNELS, c_mults=[1] * len(strides), strides=list(strides), latent_dim=CHANNELS,
        encoder_latent_dim=2 * CHANNELS, downsampling_ratio=prod(strides), sample_rate=8000,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=inverted)
    pipeline = LongCatAudioDiTPipeline(
        vae=randomize(vae),
        text_encoder=UMT5EncoderModel(text),
        tokenizer=make_tokenizer(),
        transformer=make_transformer("LongCatAudioDiTTransformer"),
        scheduler=scheduler,
    )
    pipeline.save_pretrained(str(folder))
    if not inverted:
        scheduler.save_pretrained(str(folder / "scheduler"))
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A random teacher\n")
    return folder


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None deletes one."""
    content = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in content.items() if value is not None})
