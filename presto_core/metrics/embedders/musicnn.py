"""The default embedder: musicnn (Pons & Serra 2019), whose weights are shipped in this package.

The weights are MagnaTagATune's, converted from the PyPI package musicnn 0.1.0 (ISC licence); see weights/.
"""

from __future__ import annotations

import hashlib
from importlib import resources

import torch
import torch.nn.functional as F
import torchaudio.functional as TAF
from safetensors.torch import load
from torch import Tensor, nn

from presto_core.metrics.embedders.embedder import check_audio

SAMPLE_RATE_HZ, N_FFT, HOP, N_MELS = 16000, 512, 256, 96
PATCH_FRAMES = 187
PATCH_SECONDS = 3.0  # which they are, but for a few samples
CPU_PATCHES = 2
"""Patches that go through the network together on a CPU: the maps of more (15 MB each) do not stay in its cache."""


class LogMel(nn.Module):
    """log10(1 + 10000 mel power), librosa's default mel filters, in fp32: upstream's fp16 overflows on loud audio."""

    filters: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = TAF.melscale_fbanks(
            N_FFT // 2 + 1, 0.0, SAMPLE_RATE_HZ / 2, N_MELS, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, N] -> [B, frames, 96]."""
        spectrum = torch.stft(
            audio, N_FFT, HOP, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        power = spectrum.abs().square().transpose(1, 2)
        return torch.log10(1 + 10000 * power @ self.filters)


class MusiCNN(nn.Module):
    """musicnn: timbral and temporal front-end filters, three convolutions, pooled dense features, 50 tags."""

    def __init__(self) -> None:
        super().__init__()
        self.bn_in = nn.BatchNorm2d(1, eps=1e-3)
        self.f74 = nn.Conv2d(1, 204, (7, 38))
        self.f77 = nn.Conv2d(1, 204, (7, 67))
        self.s = nn.ModuleList(nn.Conv2d(1, 51, (k, 1)) for k in (128, 64, 32))
        self.bn_f = nn.ModuleList(nn.BatchNorm2d(n, eps=1e-3) for n in (204, 204, 51, 51, 51))
        self.mid = nn.ModuleList(nn.Conv1d(c, 64, 7, padding=3) for c in (561, 64, 64))
        self.bn_m = nn.ModuleList(nn.BatchNorm1d(64, eps=1e-3) for _ in range(3))
        self.bn_pool = nn.BatchNorm1d(1506, eps=1e-3)
        self.dense = nn.Linear(1506, 200)
        self.bn_dense = nn.BatchNorm1d(200, eps=1e-3)
        self.out = nn.Linear(200, 50)

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 187, 96] -> tag probabilities [B, 50], penultimate features [B, 200]."""
        front = self._apply_front_end(self.bn_in(log_mel.unsqueeze(1)))
        c1 = self.bn_m[0](F.relu(self.mid[0](front)))
        c2 = self.bn_m[1](F.relu(self.mid[1](c1))) + c1
        c3 = self.bn_m[2](F.relu(self.mid[2](c2))) + c2
        pooled = torch.cat([front, c1, c2, c3], 1)  # [B, 753, 187]
        # TensorFlow's flatten order: feature by feature, (max, mean)
        flat = torch.stack([pooled.amax(2), pooled.mean(2)], 2).flatten(1)
        penultimate = self.bn_dense(F.relu(self.dense(self.bn_pool(flat))))
        return torch.sigmoid(self.out(penultimate)), penultimate

    def _apply_front_end(self, x: Tensor) -> Tensor:
        """[B, 1, 187, 96] -> [B, 561, 187]."""
        outputs = []
        for conv, norm in zip((self.f74, self.f77, *self.s), self.bn_f):
            assert isinstance(norm, nn.BatchNorm2d)
            kernel = conv.kernel_size[0]
            padded = F.pad(x, (0, 0, (kernel - 1) // 2, kernel // 2))  # TensorFlow's 'same'
            outputs.append(pool_over_mel(padded, conv, norm))
        return torch.cat(outputs, 1)


def pool_over_mel(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """max over mel of norm(relu(conv(x))), [B, 1, T, 96] -> [B, C, T]; x is padded in time.

    ReLU and normalization follow the maximum, where they have little to do. Both are monotone, so the value is the
    same, exactly: rising maps send maxima to maxima, falling ones (a negative scale) minima, which are maxima of -x.
    """
    sign = torch.where(norm.weight < 0, -1.0, 1.0)
    # channels that are contiguous give the maximum whole vectors to compare
    weight = (conv.weight * sign[:, None, None, None]).contiguous(memory_format=torch.channels_last)
    highest = F.conv2d(x, weight).permute(0, 2, 3, 1).amax(2).transpose(1, 2)  # [B, C, T]
    assert conv.bias is not None
    extreme = highest * sign[:, None] + conv.bias[:, None]
    return norm(F.relu(extreme)[..., None])[..., 0]


class MusicnnEmbedder:
    """`Embedder`: penultimate features of the shipped musicnn, one 200-d vector per 3 s; a remainder is dropped."""

    kind = "musicnn"
    name = "musicnn-mtt-penultimate"
    sample_rate_hz = SAMPLE_RATE_HZ
    dim = 200
    patch_seconds = PATCH_SECONDS

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        weights = resources.files("presto_core.metrics").joinpath("weights/musicnn_mtt.safetensors").read_bytes()
        self.digest = hashlib.sha256(weights).hexdigest()
        self.device = torch.device(device)
        self.mel, self.net = LogMel().to(device), MusiCNN().eval()
        # strict=False: BatchNorm's num_batches_tracked is not stored
        self.net.load_state_dict(load(weights), strict=False)
        self.net.to(device)

    def embed(self, audio: Tensor) -> Tensor:
        """audio: [B, N] at 16 kHz, N >= 3 s -> [B, patches, 200]; see `Embedder.embed`."""
        return self.embed_with_tags(audio)[0]

    @torch.inference_mode()
    def embed_with_tags(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """audio: [B, N] at 16 kHz, N >= 3 s -> embeddings [B, patches, 200], tag probabilities [B, patches, 50].

        The tags' names are `presto_core.metrics.adherence.tags.TAGS`; errors are those of `Embedder.embed`.
        """
        check_audio(audio, self, shortest=(PATCH_FRAMES - 1) * HOP)
        log_mel = self.mel(audio.to(self.device))
        patches = log_mel.unfold(1, PATCH_FRAMES, PATCH_FRAMES).transpose(2, 3)  # [B, P, 187, 96]
        batch, count = patches.shape[:2]
        tags, penultimate = self._apply_network(patches.flatten(0, 1))
        return penultimate.reshape(batch, count, -1).cpu(), tags.reshape(batch, count, -1).cpu()

    def _apply_network(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """[M, 187, 96] -> tag probabilities [M, 50], penultimate features [M, 200]."""
        size = CPU_PATCHES if self.device.type == "cpu" else len(patches)
        tags, penultimate = zip(*(self.net(patches[i : i + size]) for i in range(0, len(patches), size)))
        return torch.cat(tags), torch.cat(penultimate)
