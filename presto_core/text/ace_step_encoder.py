"""ACE-Step's text encoder: a caption within the prompt of its pipeline, which names the length of the clip.

The pipeline encodes each prompt without padding, and so does this: the states of a text do not depend on its batch.
"""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from presto_core.text.diffusers_encoder import (
    DiffusersEncoder,
    compute_digest,
    load_tokenizer,
    read_settings,
    read_transformer_class,
)
from presto_core.text.transformer_encoder import TextEmbedding, TextError, mask_states

TRANSFORMER = "AceStepTransformer1DModel"
LYRICS = "[Instrumental]"  # as the model was trained on music without voice
_LYRICS = f"# Languages\nen\n\n# Lyric\n{LYRICS}<|endoftext|>"
_START = "# Instruction\nFill the audio semantic mask based on the given conditions:\n\n# Caption\n"
_END = "\n\n# Metas\n- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A\n- duration: {seconds} seconds\n<|endoftext|>\n"


class AceStepEncoder(DiffusersEncoder):
    """The text encoder of an ACE-Step folder.

    Args:
        frames: latent frames of every clip.

    Raises:
        TextError: as `DiffusersEncoder`, or no frames are given.
    """

    def __init__(
        self, folder: Path, *, max_tokens: int, frames: int | None, device: torch.device | str = "cpu"
    ) -> None:
        self._end = make_end(folder, frames)
        super().__init__(folder, max_tokens=max_tokens, device=device)
        self.digest = self.former_digest = _extend_digest(self.digest, self._end)

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> TextEmbedding:
        prompts = [_START + caption + self._end for caption in captions]
        inputs = self._tokenizer(
            prompts, padding="longest", padding_side="right", truncation=True, max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)  # fmt: skip
        mask = inputs["attention_mask"]
        states = self._model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state.float()
        missing = self.max_tokens - states.shape[1]
        states, mask = nn.functional.pad(states, (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing))
        return mask_states(states, mask.bool(), captions)

    def find_cut_text(self, caption: str) -> str:
        """Return what is not read of a caption and of the lines that follow it in the prompt."""
        return super().find_cut_text(_START + caption + self._end) if caption.strip() else ""

    @torch.no_grad()
    def embed_lyrics(self) -> Tensor:
        """Return the embedded tokens of what stands for no lyrics: [1, L, E]."""
        ids = self._tokenizer([_LYRICS], return_tensors="pt")["input_ids"].to(self.device)
        embedded: Tensor = self._model.get_input_embeddings()(ids).float()
        return embedded


def make_end(folder: Path, frames: int | None) -> str:
    """Return what follows a caption in the prompt; raises TextError without a number of frames."""
    if frames is None:
        raise TextError(f"the prompt of {folder} names the length of a clip; say how many latent frames clips have")
    vae = read_settings(folder / "vae" / "config.json")
    try:
        seconds = frames * prod(vae["downsampling_ratios"]) / float(vae["sampling_rate"])
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise TextError(f"{folder}/vae/config.json lacks {error}; download the teacher again") from None
    return _END.format(seconds=int(seconds))


def count_lyric_tokens(folder: Path) -> int:
    """Return the length of `AceStepEncoder.embed_lyrics`, which only the tokenizer decides; raises TextError."""
    return len(load_tokenizer(folder)([_LYRICS])["input_ids"][0])


def is_ace_step(folder: Path) -> bool:
    """Return whether a folder has an ACE-Step transformer; raises TextError if it is no diffusers folder."""
    return read_transformer_class(folder) == TRANSFORMER


def compute_ace_step_digest(folder: Path, max_tokens: int, frames: int | None) -> str:
    """Return the digest of an encoder without loading it; raises TextError."""
    return _extend_digest(compute_digest(folder, max_tokens), make_end(folder, frames))


def _extend_digest(digest: str, end: str) -> str:
    return hashlib.sha256(f"{digest}{_START}{end}".encode()).hexdigest()
