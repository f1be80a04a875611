"""Preconditions: what turns a raw network of any parameterisation into a denoiser of x = x0 + sigma eps.

One form holds them all: D(x; sigma) = c_skip x + c_out F(c_in x; time). `PRECONDITIONS` has a row for each:

    kind             F estimates                c_skip            c_out                c_in             time
    edm              (x0 - c_skip x) / c_out    d^2 / (s^2+d^2)   s d / sqrt(s^2+d^2)  1/sqrt(s^2+d^2)  ln(s) / 4
    v_cosine         v = alpha eps - beta x0    1 / (1+s^2)       -s / sqrt(1+s^2)     1/sqrt(1+s^2)    2/pi atan s
    flow             v = eps - x0               1 / (1+s)         -s / (1+s)           1 / (1+s)        s / (1+s)
    flow_reversed    v = x0 - eps               1 / (1+s)         s / (1+s)            1 / (1+s)        1 / (1+s)
    epsilon_table    eps                        1                 -s                   1/sqrt(1+s^2)    index in table
    v_table          v                          1 / (1+s^2)       -s / sqrt(1+s^2)     1/sqrt(1+s^2)    index in table
    sample_table     x0                         0                 1                    1/sqrt(1+s^2)    index in table

with s = sigma, d = sigma_data. The loss weight 1 / c_out^2 makes the error of x0 the model's own error of F. As x0 is
linear in F, linear guidance of F and of x0 are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from presto_core.errors import UserError


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in as [B, 1, 1] and the network's time as [B]; fp32, or fp64 for levels in fp64."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    time: Tensor


@dataclass(frozen=True)
class Precondition:
    """A parameterisation; `kind` names it in a model card, with the numbers that are its fields."""

    kind: ClassVar[str] = ""

    def __call__(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients at noise levels sigma: [B]."""
        raise NotImplementedError

    def sigma_at(self, time: Tensor) -> Tensor:
        """Return the noise levels at times of the network, the inverse of `Coefficients.time`."""
        raise NotImplementedError

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return lambda(sigma) = 1 / c_out^2 [B], by which the error of x0 becomes the network's own."""
        return 1 / self(sigma).c_out.flatten() ** 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for a model card; `read_precondition` reads it."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Edm(Precondition):
    """EDM (Karras et al. 2022, table 1), for latents of standard deviation sigma_data."""

    kind = "edm"
    sigma_data: float = 1.0

    def __call__(self, sigma: Tensor) -> Coefficients:
        sigma = _to_float(sigma)
        s = sigma[:, None, None]
        total = s**2 + self.sigma_data**2
        c_out = s * self.sigma_data / total.sqrt()
        return Coefficients(self.sigma_data**2 / total, c_out, 1 / total.sqrt(), sigma.log() / 4)

    def sigma_at(self, time: Tensor) -> Tensor:
        return (4 * time).exp()

    def loss_weight(self, sigma: Tensor) -> Tensor:
        # the same as 1 / c_out^2, in the order of operations of EDM's table 1
        sigma = _to_float(sigma)
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class VCosine(Precondition):
    """v-prediction in the cosine schedule alpha = cos(pi t / 2), beta = sin(pi t / 2): Stable Audio Open."""

    kind = "v_cosine"

    def __call__(self, sigma: Tensor) -> Coefficients:
        sigma = _to_float(sigma)
        s = sigma[:, None, None]
        # sigma = beta / alpha = tan(pi t / 2);  x0 = alpha (alpha x) - beta v, with alpha = 1 / sqrt(1 + sigma^2)
        total = 1 + s**2
        return Coefficients(1 / total, -s / total.sqrt(), 1 / total.sqrt(), sigma.atan() * (2 / math.pi))

    def sigma_at(self, time: Tensor) -> Tensor:
        return (time * (math.pi / 2)).tan()


@dataclass(frozen=True)
class Flow(Precondition):
    """Flow matching: x_t = (1 - t) x0 + t eps and v = eps - x0, so that sigma = t / (1 - t).

    Attributes:
        time_scale: what the network wants t multiplied by, such as 1000 training time steps.
    """

    kind = "flow"
    time_scale: float = 1.0

    def __call__(self, sigma: Tensor) -> Coefficients:
        sigma = _to_float(sigma)
        t, rest = _find_flow_time(sigma), 1 / (1 + sigma)
        # x_t = x / (1 + sigma);  x0 = x_t - t v
        c_out, c_in = -t[:, None, None], rest[:, None, None]
        return Coefficients(c_in, c_out, c_in, t * self.time_scale)

    def sigma_at(self, time: Tensor) -> Tensor:
        t = time / self.time_scale
        return t / (1 - t)


@dataclass(frozen=True)
class ReversedFlow(Precondition):
    """Flow matching with time 0 at noise and 1 at data, and v = x0 - eps."""

    kind = "flow_reversed"
    time_scale: float = 1.0

    def __call__(self, sigma: Tensor) -> Coefficients:
        sigma = _to_float(sigma)
        t, rest = _find_flow_time(sigma), _round_once(lambda wide: 1 / (1 + wide), sigma)
        c_in = rest[:, None, None]
        return Coefficients(c_in, t[:, None, None], c_in, rest * self.time_scale)

    def sigma_at(self, time: Tensor) -> Tensor:
        data = time / self.time_scale
        return (1 - data) / data


@dataclass(frozen=True)
class TableTime(Precondition):
    """Integer time steps of a table of noise levels (DDPM): the time is interpolated in ln sigma between entries.

    Attributes:
        alphas_cumprod: abar_k, falling; entry k has the noise level sqrt((1 - abar_k) / abar_k).
    """

    alphas_cumprod: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        falling = sorted(self.alphas_cumprod, reverse=True)
        if len(falling) < 2 or list(self.alphas_cumprod) != falling or not 0 < falling[-1] < falling[0] < 1:
            raise ValueError("alphas_cumprod must be at least two falling numbers between 0 and 1")

    def _time(self, sigma: Tensor) -> Tensor:
        levels, log_sigma = self._log_levels(sigma), sigma.double().log()
        above = torch.searchsorted(levels, log_sigma.contiguous()).clamp(1, len(levels) - 1)
        share = (log_sigma - levels[above - 1]) / (levels[above] - levels[above - 1])
        return (above - 1 + share.clamp(0, 1)).to(sigma.dtype)

    def sigma_at(self, time: Tensor) -> Tensor:
        levels = self._log_levels(time)
        below = time.double().floor().long().clamp(0, len(levels) - 2)
        share = time.double() - below
        return torch.lerp(levels[below], levels[below + 1], share).exp().to(time.dtype)

    def _log_levels(self, like: Tensor) -> Tensor:
        kept = torch.tensor(self.alphas_cumprod, dtype=torch.float64, device=like.device)
        return ((1 - kept) / kept).sqrt().log()


@dataclass(frozen=True)
class EpsilonTable(TableTime):
    """The network estimates the noise: x0 = x - sigma eps."""

    kind = "epsilon_table"

    def __call__(self, sigma: Tensor) -> Coefficients:
        sigma = _to_float(sigma)
        s = sigma[:, None, None]
        return Coefficients(torch.ones_like(s), -s, 1 / (1 + s**2).sqrt(), self._time(sigma))


@dataclass(frozen=True)
class VTable(TableTime):
    """v-prediction at integer time steps."""

    kind = "v_table"

    def __call__(self, sigma: Tensor) -> Coefficients:
        sigma = _to_float(sigma)
        c_skip, c_out, c_in, _ = VCosine()(sigma)
        return Coefficients(c_skip, c_out, c_in, self._time(sigma))


@dataclass(frozen=True)
class SampleTable(TableTime):
    """The network estimates x0 itself."""

    kind = "sample_table"

    def __call__(self, sigma: Tensor) -> Coefficients:
        sigma = _to_float(sigma)
        s = sigma[:, None, None]
        return Coefficients(torch.zeros_like(s), torch.ones_like(s), 1 / (1 + s**2).sqrt(), self._time(sigma))


PRECONDITIONS: dict[str, Callable[..., Precondition]] = {
    row.kind: row for row in (Edm, VCosine, Flow, ReversedFlow, EpsilonTable, VTable, SampleTable)
}


def read_precondition(data: dict[str, Any]) -> Precondition:
    """Return the precondition that `to_dict` described, also after a JSON round trip.

    Raises:
        UserError: the kind is unknown.
        TypeError, ValueError: its numbers are not those of the kind.
    """
    numbers = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    kind = numbers.pop("kind", None)
    if kind not in PRECONDITIONS:
        raise UserError(f"precondition {kind!r} is unknown; use one of {', '.join(PRECONDITIONS)}")
    return PRECONDITIONS[kind](**numbers)


def to_precondition(value: Precondition | float) -> Precondition:
    """Return a precondition as it is; a number is the sigma_data of EDM's."""
    return value if isinstance(value, Precondition) else Edm(value)


def _to_float(sigma: Tensor) -> Tensor:
    """Coefficients are never computed below fp32."""
    return sigma.to(torch.promote_types(sigma.dtype, torch.float32))


def _find_flow_time(sigma: Tensor) -> Tensor:
    """Return t = sigma / (1 + sigma), rounded once: a network may have features of 10000 t periods (Stable Audio 3)."""
    return _round_once(lambda wide: wide / (1 + wide), sigma)


def _round_once(compute: Callable[[Tensor], Tensor], sigma: Tensor) -> Tensor:
    """Compute in fp64 where the device has it."""
    if sigma.dtype == torch.float64 or sigma.device.type == "mps":  # which has no fp64
        return compute(sigma)
    return compute(sigma.double()).to(sigma.dtype)
