"""Typed configuration sections: the one dotted vocabulary of CLI, YAML, sweep spaces and tracked params."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from presto_core.config.layers import BudgetConfig, PrestoLBudget
from presto_core.config.noise import KarrasNoise, LogNormalNoise, NoiseConfig
from presto_core.config.sampling import RolloutConfig
from presto_core.config.section import Count, Fraction, Positive, Section


class StorageConfig(Section):
    root: str = ".presto/store"
    """Where artifacts and checkpoints live: a folder or s3://bucket/prefix."""


class TrackingConfig(Section):
    uri: str = ""
    """MLflow tracking URI; empty means sqlite in .presto/mlflow.db (MLFLOW_TRACKING_URI, when set, wins over empty)."""
    experiment: str = "presto"


class InputsConfig(Section):
    """Artifacts a stage starts from: registry name@alias, artifact id, or URI. Each stage reads those it needs."""

    dataset: str = "presto-dataset@candidate"
    teacher: str = "presto-teacher@candidate"
    layers: str = ""
    """Layer-distilled model that `distill-steps` starts from (Presto-LS); empty starts from the base (Presto-S)."""
    generator: str = "presto-generator@candidate"
    """Few-step generator; `evaluate` does without one where it is empty (inputs.generator="''")."""
    compared: tuple[str, ...] = ()
    """Further models that `evaluate` compares: layer-distilled ones and other generators."""


ShardingMode = Literal["replicate", "shard"]


class ParallelConfig(Section):
    """How workers hold each network. `replicate`: all of it on each (DDP). `shard`: a part of its weights, gradients,
    moments and average on each (FSDP2), gathered block by block where it runs. The result is the same but for rounding.
    """

    teacher: ShardingMode = "replicate"
    """The network that `train-teacher` trains."""
    layers: ShardingMode = "replicate"
    """The network that `distill-layers` trains."""
    generator: ShardingMode = "replicate"
    """The few-step generator that `distill-steps` trains."""
    fake_score: ShardingMode = "replicate"
    real_score: ShardingMode = "replicate"
    """The frozen teacher in `distill-steps`."""
    offload_real_score: bool = False
    """Keep the parts of a sharded real score in CPU memory, and on the GPU only the block that runs."""

    @model_validator(mode="after")
    def _check_offload_sharded(self) -> Self:
        if self.offload_real_score and self.real_score == "replicate":
            raise ValueError("offload_real_score=true needs real_score=shard")
        return self


class ClusterConfig(Section):
    address: str = ""
    """Ray address to join; empty starts Ray on this machine (RAY_ADDRESS, when set, wins over empty)."""
    num_workers: int = Field(1, ge=0)
    """Training workers; 0 runs the same loop inside this process, without Ray Train."""
    min_workers: int = Field(0, ge=0)
    """Workers that training goes on with when nodes are lost, up to num_workers again when nodes come; each number in
    between that shares the global batch evenly is used. 0 waits for all num_workers."""
    parallel: ParallelConfig = ParallelConfig()
    cpus_per_worker: Positive = 0.8
    gpus_per_worker: float = Field(0, ge=0)
    torch_threads: Count = 1
    """Threads a worker gives to PyTorch, so that workers do not fight over cores."""
    reader: Literal["auto", "ray", "threads"] = "auto"
    """What reads shards for training workers: `ray`, Ray Data tasks on whichever nodes have CPUs to spare; or `threads`
    of the worker itself, for half the work. `auto`: `ray` on a cluster that is joined, `threads` on one machine."""
    shard_cache_gb: float = Field(10, ge=0)
    """Shards that training has read are kept on each node up to this size, in $PRESTO_CACHE or ~/.cache/presto, so that
    later epochs do not fetch them; a tenth of the disk stays free. 0 keeps none."""
    data_workers: Count = 2
    """Parallel encoders in `ingest` and parallel samplers in `evaluate`."""
    cpus: int = Field(0, ge=0)
    """Cores a locally started Ray may use; 0 means all."""
    object_store_mb: int = Field(512, ge=80)
    wait_seconds: int = Field(0, ge=0)
    """How long to wait for nodes where a cluster is too small for now: an autoscaler is asked for them. 0 refuses."""
    max_failures: int = Field(2, ge=0)
    """Times a training worker group may be restarted from its last checkpoint."""

    @model_validator(mode="after")
    def _check_worker_range(self) -> Self:
        if self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} must not be above num_workers={self.num_workers}")
        return self


class NetworkConfig(Section):
    """A diffusion transformer (Peebles & Xie 2023) over latent frames."""

    dim: Count = 192
    depth: Count = 8
    heads: Count = 4
    patch: Count = 2
    """Latent frames a token holds."""
    mlp_ratio: Positive = 3.0
    filter_taps: Count = 9
    """Latent frames, an odd number, that the filter from input to output spans."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim={self.dim} must be a multiple of 2 x heads = {2 * self.heads}")
        if self.filter_taps % 2 == 0:
            raise ValueError(f"filter_taps={self.filter_taps} must be odd, so that a filter has a middle")
        return self


class OptimConfig(Section):
    """AdamW with linear warm-up."""

    learning_rate: Positive = 1e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["constant", "cosine"] = "constant"
    """`cosine` falls to 5 % of the learning rate at the last update."""
    max_grad_norm: Positive = 1.0


class LoopConfig(Section):
    """How a run computes, is watched and saved; none of it changes the result beyond rounding."""

    log_every: Count = 10
    """Updates between two logged rows."""
    checkpoint_every: Count = 100
    """Total steps between two checkpoints."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept; with one, nothing is left where that one gets damaged."""
    keep_every: int = Field(0, ge=0)
    """Checkpoints at multiples of this many total steps are kept as well until the run is done; 0 keeps none."""
    micro_batch_size: int = Field(0, ge=0)
    """Rows a worker puts through the networks at once; gradients of its share of the global batch are accumulated over
    micro-batches. 0 takes the share whole. Lower it where memory is short: the result stays the same but for rounding,
    so it is not part of the run_id."""
    activation_checkpointing: bool = False
    """Compute activations inside transformer blocks again in the backward pass instead of keeping them."""
    autocast: Literal["none", "bf16"] = "none"
    """Reduced precision around networks only; sigma, weights and reductions stay fp32."""


class HealthConfig(Section):
    """What happens when a health signal leaves the range it is expected in (METHOD section 3)."""

    stop: bool = False
    """End the run, with a checkpoint, when a signal stays outside for twice `patience` rows."""
    patience: Count = 5
    """Logged rows on end that a signal is outside its range before the run warns of it."""


class TeacherConfig(Section):
    """EDM training of the base model (METHOD section 1)."""

    steps: Count = 2000
    global_batch_size: Count = 32
    optim: OptimConfig = OptimConfig(learning_rate=1e-3, warmup_steps=100, decay="cosine")
    p_train: NoiseConfig = LogNormalNoise()
    caption_dropout: Fraction = 0.1
    """Share of rows whose conditions are withheld, so that guidance is possible."""
    ema_decay: Fraction = 0.999


class LayersConfig(Section):
    """Presto-L: layer distillation (METHOD section 4)."""

    steps: Count = 1000
    global_batch_size: Count = 16
    optim: OptimConfig = OptimConfig(learning_rate=1e-3, warmup_steps=20, decay="cosine")
    p_train: NoiseConfig = LogNormalNoise()
    """Noise levels trained at; the budget's bins hold equal shares of it."""
    budget: BudgetConfig = PrestoLBudget()
    """Blocks that run at each noise level."""
    mode: Literal["presto", "ase"] = "presto"
    """Which blocks a budget skips: `presto` keeps the last and skips those before it; `ase` skips the last ones."""
    budget_conditioning: bool = True
    """Tell the network how many of its blocks run."""
    self_teacher_weight: float = Field(0.1, ge=0)
    """beta: weight of the distance between the last block's activations at the budget and at full depth."""
    caption_dropout: Fraction = 0.1
    ema_decay: Fraction = 0.99


class GanConfig(Section):
    kind: Literal["lsgan", "nonsat", "hinge", "relativistic"] = "lsgan"
    generator_weight: float = Field(0.01, ge=0)
    """nu_1: weight of the adversarial term in the generator's loss."""
    fake_score_weight: float = Field(0.01, ge=0)
    """nu_2: weight of the discriminator's loss beside the fake score's own."""
    weight_mode: Literal["absolute", "grad_ratio"] = "grad_ratio"
    """`absolute`: nu_1 scales the loss; `grad_ratio`: its gradient at x0 gets nu_1 times the norm of DMD's."""
    warmup_updates: int = Field(0, ge=0)
    """Generator updates before the adversarial term starts."""
    taps: tuple[int, ...] = ()
    """Blocks of the fake score whose activations are judged; empty means the middle block."""
    head_channels: Count = 64
    head_layers: int = Field(2, ge=0)
    """Halvings of the time axis before scores are given; 0 judges each token by a linear read-out."""
    r1_weight: float = Field(0.0, ge=0)
    """Weight of the approximate R1 penalty on noised real latents."""
    r1_std: Positive = 0.01


class StepsConfig(Section):
    """Presto-S: step distillation with three networks (METHOD section 3)."""

    generator_updates: Count = 200
    fake_updates_per_generator_update: Count = 5
    global_batch_size: Count = 16
    guidance_scale: float = Field(1.0, ge=0)
    """w of the real score; the student itself samples without guidance."""
    generator_optim: OptimConfig = OptimConfig(learning_rate=5e-5, betas=(0.0, 0.99))
    fake_optim: OptimConfig = OptimConfig(learning_rate=3e-4, betas=(0.0, 0.99))
    head_optim: OptimConfig = OptimConfig(learning_rate=3e-4, betas=(0.0, 0.99))
    budget: BudgetConfig | None = None
    """Blocks the generator runs at each noise level of its input, in bins of p_gen; empty means all of them when it
    starts from the base, and `presto_ls` when it starts from a layer-distilled model."""
    p_gen: NoiseConfig = KarrasNoise()
    p_dmd: NoiseConfig = LogNormalNoise()
    p_dsm: NoiseConfig = LogNormalNoise()
    p_gan: NoiseConfig = LogNormalNoise()
    weighting: Literal["dmd", "edm", "none"] = "dmd"
    generator_input: Literal["data", "rollout"] = "data"
    """`data`: noised real latents (the paper). `rollout`: the generator's own few-step trajectory."""
    rollout: RolloutConfig = RolloutConfig()
    gan: GanConfig = GanConfig()
    ema_decay: Fraction = 0.98
