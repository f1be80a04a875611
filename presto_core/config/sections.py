"""Typed configuration sections: the one dotted vocabulary of CLI, YAML, sweep spaces and tracked params."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from presto_core.config.cluster import ClusterConfig as ClusterConfig
from presto_core.config.cluster import ParallelConfig as ParallelConfig
from presto_core.config.layers import BudgetConfig, PrestoLBudget
from presto_core.config.noise import KarrasNoise, LogNormalNoise, NoiseConfig
from presto_core.config.sampling import RolloutConfig
from presto_core.config.section import Count, Fraction, LocalFolder, Positive, Section


class StorageConfig(Section):
    """Where artifacts and checkpoints live."""

    root: str = ".presto/store"
    """Where artifacts and checkpoints live: a folder or s3://bucket/prefix."""
    codec_folder: LocalFolder = ""
    """Your folder of codec weights, for data sets and models made with codec.path, because the folder that an artifact
    names is never opened. Empty uses the codec in the package."""
    text_folder: LocalFolder = ""
    """Your folder of the text encoder, for data sets and models made with text.path. Empty uses the MiniLM in its
    wheel."""


class TrackingConfig(Section):
    """The MLflow server that records runs and registers versions."""

    uri: str = ""
    """MLflow tracking URI; empty uses MLFLOW_TRACKING_URI if it is set, else sqlite in .presto/mlflow.db."""
    experiment: str = "presto"
    """MLflow experiment that receives the runs."""


class InputsConfig(Section):
    """Artifacts that a stage starts from: registry name@alias, artifact id, URI, or the name of a pretrained model in
    the package. Each stage reads those it needs."""

    dataset: str = "presto-dataset@candidate"
    """Data set of latents, as `ingest` makes it."""
    teacher: str = "presto-teacher@candidate"
    """Teacher to distill, or to compare with."""
    layers: str = ""
    """Layer-distilled model that `distill-steps` starts from (Presto-LS); empty starts from the teacher (Presto-S)."""
    generator: str = "presto-generator@candidate"
    """Few-step generator; optional for `evaluate` (inputs.generator="''" leaves it out)."""
    compared: tuple[str, ...] = ()
    """Further models that `evaluate` compares: layer-distilled ones and other generators."""


class NetworkConfig(Section):
    """A diffusion transformer (Peebles & Xie 2023) over latent frames."""

    dim: Count = 192
    """Width: channels of each token; a multiple of 2 x heads."""
    depth: Count = 8
    """Number of transformer blocks."""
    heads: Count = 4
    """Attention heads of each block."""
    patch: Count = 2
    """Latent frames per token."""
    mlp_ratio: Positive = 3.0
    """Width of each block's hidden layer, as a multiple of dim."""
    filter_taps: Count = 9
    """Length in latent frames of the filter from input to output; must be odd."""
    spectrum_bins: int = Field(0, ge=0)
    """Frequencies per channel of the Gaussian skip: the best linear denoiser of the training set runs next to the
    network, which learns the rest. Set it to the number of frames of the data set's rows; 0 leaves the skip out."""
    beat_heads: int = Field(0, ge=0)
    """Number of attention heads of each block whose positions count beats of the row's tempo instead of tokens, so that
    attention finds what was there one beat or one bar ago at any tempo; 0 means none."""
    frame_rate: float = Field(0.0, ge=0)
    """Latent frames per second, which beat heads need; 0 uses that of the data set."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim={self.dim} must be a multiple of 2 x heads = {2 * self.heads}")
        if self.beat_heads > self.heads:
            raise ValueError(f"beat_heads={self.beat_heads} are more than heads={self.heads}")
        if self.filter_taps % 2 == 0:
            raise ValueError(f"filter_taps={self.filter_taps} must be odd, so that a filter has a middle")
        return self


class OptimConfig(Section):
    """AdamW with linear warm-up."""

    learning_rate: Positive = 1e-4
    """Learning rate after the warm-up."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """Decay rates of the first and the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay, decoupled from the gradient (AdamW); 0 means none."""
    warmup_steps: int = Field(0, ge=0)
    """Updates over which the learning rate rises from 0; 0 means no warm-up."""
    decay: Literal["constant", "cosine"] = "constant"
    """`constant` keeps the learning rate after the warm-up; `cosine` lowers it to 5 % at the last update."""
    max_grad_norm: Positive = 1.0
    """Norm to which larger gradients are scaled down."""


class LoopConfig(Section):
    """How a run computes, logs and saves; results differ only by rounding."""

    log_every: Count = 10
    """Updates between two logged rows."""
    checkpoint_every: Count = 100
    """Total steps between two checkpoints."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep; with 1, a damaged checkpoint leaves none."""
    keep_every: int = Field(0, ge=0)
    """Also keep checkpoints at multiples of this many total steps until the run is finished; 0 keeps none."""
    max_unsaved_minutes: float = Field(60, ge=0)
    """Minutes for which training continues, and retries, while checkpoints cannot be written; then the run fails. 0
    fails at once."""
    micro_batch_size: int = Field(0, ge=0)
    """Rows per pass; gradients are accumulated over micro-batches. 0 processes the worker's share of the global batch
    at once. Lower it if memory is short: results differ only by rounding, so it is not part of the run id."""
    activation_checkpointing: bool = False
    """Recompute activations inside transformer blocks in the backward pass instead of keeping them: less memory, more
    time."""
    autocast: Literal["none", "bf16"] = "none"
    """`bf16` runs networks in reduced precision, while sigma, weights and reductions stay fp32; `none` keeps all in
    fp32."""
    tf32: bool = False
    """Allow TF32 for fp32 matrix products on a GPU: faster from NVIDIA Ampere on, with 10 bits of mantissa in place of
    23. Where `autocast` is bf16, only products outside networks are left in fp32. Nothing changes on a CPU."""
    compile: bool = False
    """Compile transformer blocks (torch.compile): faster steps after a minute of compiling; needs a C++ compiler."""


class HealthConfig(Section):
    """What happens if a health signal leaves its expected range (docs/method.md)."""

    stop: bool = False
    """Stop the run, with a checkpoint, if a signal stays outside its range for twice `patience` rows."""
    patience: Count = 5
    """Consecutive logged rows in which a signal is outside its range before the run warns about it."""


class TeacherConfig(Section):
    """EDM training of the teacher (docs/method.md)."""

    steps: Count = 2000
    """Updates of the network."""
    global_batch_size: Count = 32
    """Rows per update, over all workers; a multiple of their number."""
    optim: OptimConfig = OptimConfig(learning_rate=1e-3, warmup_steps=100, decay="cosine")
    """Optimiser of the network."""
    p_train: NoiseConfig = LogNormalNoise()
    """Noise levels of training."""
    caption_dropout: Fraction = 0.1
    """Probability that a row's conditions are dropped, so that guidance is possible."""
    attribute_dropout: Fraction = 0.0
    """Probability that a row's tempo is dropped, and independently its key, so that the network learns prompts without
    them."""
    ema_decay: Fraction = 0.999
    """Decay per update of the moving average of the weights, which is the result of the run."""


class LoraConfig(Section):
    """Low-rank adapters over frozen weights: only the adapters are trained; the networks of a run share the rest."""

    rank: int = Field(0, ge=0)
    """Rank of the adapters; 0 trains all weights."""
    alpha: Positive = 16.0
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Parts of names of the linear layers that get an adapter, such as to_q or attention; empty means all those of the
    transformer's blocks."""


class LayersConfig(Section):
    """Presto-L: layer distillation (docs/method.md)."""

    steps: Count = 1000
    """Updates of the network."""
    global_batch_size: Count = 16
    """Rows per update, over all workers; a multiple of their number."""
    optim: OptimConfig = OptimConfig(learning_rate=1e-3, warmup_steps=20, decay="cosine")
    """Optimiser of the network."""
    p_train: NoiseConfig = LogNormalNoise()
    """Noise levels of training; the budget's bins have equal probability under it."""
    budget: BudgetConfig = PrestoLBudget()
    """Blocks to run at each noise level."""
    mode: Literal["presto", "ase"] = "presto"
    """Which blocks to skip: `presto` keeps the last block and skips those before it; `ase` skips the last ones."""
    budget_conditioning: bool = True
    """Condition the network on the number of its active blocks."""
    self_teacher_weight: float = Field(0.1, ge=0)
    """beta: weight of the distance between the last block's activations at the budget and at full depth."""
    caption_dropout: Fraction = 0.1
    """Probability that a row's conditions are dropped."""
    attribute_dropout: Fraction = 0.0
    """Probability that a row's tempo is dropped, and independently its key."""
    ema_decay: Fraction = 0.99
    """Decay per update of the moving average of the weights, which is the result of the run."""
    lora: LoraConfig = LoraConfig()
    """Train adapters instead of all weights."""


class GanConfig(Section):
    """The adversarial term of step distillation, and its discriminator on activations of the fake score."""

    kind: Literal["lsgan", "nonsat", "hinge", "relativistic"] = "lsgan"
    """Loss of discriminator and generator: least squares, non-saturating, hinge or relativistic."""
    generator_weight: float = Field(0.01, ge=0)
    """nu_1: weight of the adversarial term in the generator's loss."""
    fake_score_weight: float = Field(0.01, ge=0)
    """nu_2: weight of the discriminator's loss, which is added to the fake score's own."""
    weight_mode: Literal["absolute", "grad_ratio"] = "grad_ratio"
    """`absolute`: nu_1 scales the adversarial loss; `grad_ratio`: the gradient of this loss at x0 is scaled to nu_1
    times the norm of DMD's."""
    warmup_updates: int = Field(0, ge=0)
    """Generator updates before the adversarial term starts; 0 uses it from the start."""
    taps: tuple[int, ...] = ()
    """Blocks of the fake score whose activations the discriminator reads; empty means the middle block."""
    head_channels: Count = 64
    """Width of the discriminator's head."""
    head_layers: int = Field(2, ge=0)
    """How often the head halves the time axis before it scores; 0 scores each token with a linear layer."""
    r1_weight: float = Field(0.0, ge=0)
    """Weight of the approximate R1 penalty on noised real latents; 0 turns it off."""
    r1_std: Positive = 0.01
    """Standard deviation of the noise that the R1 penalty adds."""


class StepsConfig(Section):
    """Presto-S: step distillation with three networks (docs/method.md)."""

    generator_updates: Count = 200
    """Updates of the generator."""
    fake_updates_per_generator_update: Count = 5
    """Updates of the fake score and the discriminator before each update of the generator."""
    global_batch_size: Count = 16
    """Rows per update, over all workers; a multiple of their number."""
    guidance_scale: float = Field(1.0, ge=0)
    """Guidance weight w of the real score; 1 means no guidance. The generator itself samples without guidance."""
    generator_optim: OptimConfig = OptimConfig(learning_rate=5e-5, betas=(0.0, 0.99))
    """Optimiser of the generator."""
    fake_optim: OptimConfig = OptimConfig(learning_rate=3e-4, betas=(0.0, 0.99))
    """Optimiser of the fake score."""
    head_optim: OptimConfig = OptimConfig(learning_rate=3e-4, betas=(0.0, 0.99))
    """Optimiser of the discriminator's head."""
    budget: BudgetConfig | None = None
    """Blocks that the generator runs at each noise level of its input, in bins of p_gen; empty means all blocks if it
    starts from the teacher. If it starts from a layer-distilled model, it means `presto_ls`, or that model's own table
    if that is not `presto_l`."""
    p_gen: NoiseConfig = KarrasNoise()
    """Noise levels of the generator's inputs."""
    p_dmd: NoiseConfig = LogNormalNoise()
    """Noise levels at which real and fake score are compared (DMD)."""
    p_dsm: NoiseConfig = LogNormalNoise()
    """Noise levels at which the fake score learns (denoising score matching)."""
    p_gan: NoiseConfig = LogNormalNoise()
    """Noise levels at which the discriminator compares real and generated latents."""
    weighting: Literal["dmd", "edm", "none"] = "dmd"
    """Weight of the difference between the two scores in each row. `dmd`: 1 / mean|x0 - real_x0|; `edm`: lambda(sigma);
    `none`: 1."""
    generator_input: Literal["data", "rollout"] = "data"
    """`data`: noised real latents (the paper). `rollout`: the generator's own few-step trajectory."""
    rollout: RolloutConfig = RolloutConfig()
    """The trajectory for generator_input=rollout."""
    gan: GanConfig = GanConfig()
    """The adversarial term, and its discriminator on activations of the fake score."""
    shared_taps: bool = False
    """Let the discriminator read generated latents in the passes in which the fake score estimates them, with the same
    noise, instead of in passes of its own: about a fifth less work. Needs p_dmd, p_dsm and p_gan to be equal. The
    losses have the same expectation, but results differ, and their quality is not compared yet."""
    ema_decay: Fraction = 0.98
    """Decay per generator update of the moving average of its weights, which is the result of the run."""
    lora: LoraConfig = LoraConfig()
    """Train adapters of generator and fake score over one frozen network instead of all weights."""

    @model_validator(mode="after")
    def _check_shared_taps(self) -> Self:
        if self.shared_taps and not self.p_dmd == self.p_dsm == self.p_gan:
            raise ValueError(
                "shared_taps=true needs p_dmd, p_dsm and p_gan to be the same distribution; make them equal"
            )
        return self
