"""VGGish (Hershey et al. 2017), the embedding of the first Fréchet audio distance, with torchvggish's tensor names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from presto_core.metrics.embedders.embedder import EmbedderError, check_audio
from presto_core.metrics.embedders.model_folder import (
    WEIGHTS_FILE,
    ModelFolder,
    describe_missing,
    open_model_folder,
    translate_errors,
)

SAMPLE_RATE_HZ, WINDOW, HOP, N_FFT = 16000, 400, 160, 512  # 25 ms windows every 10 ms
N_MELS, LOWEST_HZ, HIGHEST_HZ, LOG_OFFSET = 64, 125.0, 7500.0, 0.01
PATCH_FRAMES = 96  # 0.96 s, without overlap
CONVOLUTIONS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool")
PATCH_SAMPLES = (PATCH_FRAMES - 1) * HOP + WINDOW


class VggishEmbedder:
    """`Embedder`: 128-d, one vector per 0.96 s; what is left over is dropped.

    Vectors are those before the last ReLU, without PCA and quantisation (Kilgour et al. 2019; fadtk).

    Args:
        source: folder or hub id that has model.safetensors with torchvggish's names; no config is needed.

    Raises:
        EmbedderError: the folder contains no such weights.
    """

    kind = "vggish"
    sample_rate_hz = SAMPLE_RATE_HZ
    dim = 128
    patch_seconds = PATCH_SAMPLES / SAMPLE_RATE_HZ

    def __init__(self, source: str, *, device: torch.device | str = "cpu") -> None:
        folder = open_model_folder(self.kind, source)
        self.name, self.digest, self.device = folder.name, folder.compute_digest(), torch.device(device)
        self.mel = VggishLogMel().to(device)
        self.net = _load_vggish(folder).eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Tensor:
        """audio: [B, N] at 16 kHz, N >= 0.975 s -> [B, patches, 128]; see `Embedder.embed`."""
        check_audio(audio, self)
        log_mel = self.mel(audio.to(self.device, torch.float32))
        patches = log_mel.unfold(1, PATCH_FRAMES, PATCH_FRAMES).transpose(2, 3)  # [B, P, 96, 64]
        return self.net(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]).cpu()


class VggishLogMel(nn.Module):
    """log(mel magnitude + 0.01): HTK's mel scale, triangles that are linear in mel, frames that lie in the audio."""

    filters: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", make_mel_filters(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, N] -> [B, 1 + (N - 400) // 160, 64]."""
        frames = audio.unfold(1, WINDOW, HOP) * self.window
        return torch.log(torch.fft.rfft(frames, N_FFT).abs() @ self.filters + LOG_OFFSET)


def make_mel_filters() -> Tensor:
    """Return [257, 64] filters: triangles over mel (not Hz, as torchaudio's are)."""

    def to_mel(hz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hz / 700)

    bins = to_mel(torch.linspace(0, SAMPLE_RATE_HZ / 2, N_FFT // 2 + 1, dtype=torch.float64))[:, None]
    lowest, highest = to_mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ], dtype=torch.float64)).tolist()
    edges = torch.linspace(lowest, highest, N_MELS + 2, dtype=torch.float64)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    filters = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp_min(0)
    return filters.float()


class Vggish(nn.Module):
    """VGG-11's first four stages and three dense layers; `hidden` is 4096 in the published weights."""

    def __init__(self, hidden: int = 4096) -> None:
        super().__init__()
        self.features = nn.Sequential(*_make_convolutions())
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 128)
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """[M, 96, 64] -> [M, 128]."""
        maps = self.features(log_mel[:, None])  # [M, 512, 6, 4]
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))  # TensorFlow's order: time, mel, channel


def _make_convolutions() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 1
    for size in CONVOLUTIONS:
        if isinstance(size, int):
            layers += [nn.Conv2d(channels, size, 3, padding=1), nn.ReLU()]
            channels = size
        else:
            layers.append(nn.MaxPool2d(2))
    return layers


def _load_vggish(folder: ModelFolder) -> Vggish:
    """The network with a folder's weights; further tensors (torchvggish's PCA, `pproc.`) are not used."""
    from safetensors.torch import load_file

    folder.check_file(WEIGHTS_FILE)
    with translate_errors(folder):
        stored = load_file(folder.path / WEIGHTS_FILE)
    hidden = len(stored["embeddings.0.bias"]) if "embeddings.0.bias" in stored else 4096
    with torch.device("meta"):
        net = Vggish(hidden)
    expected = net.state_dict()
    if missing := sorted(expected.keys() - stored.keys()):
        raise EmbedderError(describe_missing(folder, missing))
    for name, tensor in expected.items():
        if stored[name].shape != tensor.shape:
            raise EmbedderError(
                f"embedder vggish: {name} in {folder.path} has shape {list(stored[name].shape)}, wanted "
                f"{list(tensor.shape)}; these are not VGGish's weights"
            )
    net.load_state_dict({name: stored[name].float() for name in expected}, assign=True)
    return net
