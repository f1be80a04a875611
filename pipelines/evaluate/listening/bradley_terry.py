"""The Bradley-Terry model of paired comparisons with ties (Davidson 1970), fitted by maximum likelihood.

System i has strength pi_i = exp(theta_i). For a pair of systems, with s = pi_i + pi_j + nu sqrt(pi_i pi_j):

    P(i preferred) = pi_i / s,   P(j preferred) = pi_j / s,   P(no preference) = nu sqrt(pi_i pi_j) / s

R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison experiments",
J. Am. Stat. Assoc. 65 (1970). The log-likelihood is concave in theta and log nu.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components

Array = npt.NDArray[np.float64]
PSEUDO_WINS = 0.5


@dataclass(frozen=True)
class Strengths:
    """Fitted strengths.

    Attributes:
        theta: [K] log strengths with mean 0; theta_i - theta_j are the log-odds that i is preferred to j, ties apart.
        log_nu: of the ties; -inf if there are none.
    """

    theta: Array
    log_nu: float

    def predict(self) -> tuple[Array, Array]:
        """Return P(i preferred to j) and P(no preference), each [K, K]; diagonals mean nothing."""
        return _predict(self.theta, self.log_nu)

    def predict_preference(self) -> Array:
        """Return [K], the probability to be preferred to another system, averaged over these; ties count half."""
        wins, ties = self.predict()
        share = wins + ties / 2
        np.fill_diagonal(share, 0.0)
        return np.asarray(share.sum(axis=1) / (len(share) - 1))


def add_pseudo_wins(wins: Array, *, ties: Array, pseudo_wins: float = PSEUDO_WINS) -> Array:
    """Return wins with `pseudo_wins` added both ways to each pair that was compared.

    A system that always wins would get an infinite strength. Half a win each way is Jeffreys' prior for two systems
    (D. Firth, "Bias reduction of maximum likelihood estimates", Biometrika 80, 1993) and keeps every strength finite.
    """
    compared = (wins + wins.T + ties) > 0
    return np.asarray(wins + pseudo_wins * compared)


def fit_bradley_terry(wins: Array, ties: Array, start: Strengths | None = None) -> Strengths:
    """Fit strengths to counts.

    Args:
        wins: [K, K], comparisons in which row i was preferred to column j; zero diagonal, may be fractional.
        ties: [K, K], comparisons of i and j without preference, each in both halves: symmetric.
        start: of the search.

    Raises:
        ValueError: comparisons do not connect all systems, so that their strengths cannot be compared.
    """
    total = wins + wins.T + ties
    if connected_components(total > 0, directed=False, return_labels=False) > 1:
        raise ValueError("comparisons do not connect all systems")
    has_ties = bool(ties.any())
    count, size = total.sum() / 2, len(wins)

    def loss(x: Array) -> tuple[float, Array]:
        theta, log_nu = x[:size], x[size] if has_ties else -np.inf
        p_win, p_tie = _predict(theta, log_nu)
        # d log L / d theta_i = sum_j wins_ij + ties_ij / 2 - total_ij (P(i preferred) + P(tie) / 2)
        gradient = (wins + ties / 2 - total * (p_win + p_tie / 2)).sum(axis=1)
        value = (wins * np.log(p_win)).sum()
        if has_ties:
            value += (ties * np.log(p_tie)).sum() / 2
            gradient = np.append(gradient, (ties - total * p_tie).sum() / 2)
        return -value / count, -gradient / count

    def curvature(x: Array) -> Array:
        return _compute_hessian(total, *_predict(x[:size], x[size] if has_ties else -np.inf), has_ties) / count

    x0 = np.zeros(size + has_ties)
    if start is not None:
        x0[:size] = start.theta
        if has_ties and np.isfinite(start.log_nu):
            x0[size] = start.log_nu
    x = minimize(loss, x0, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-7}).x
    return Strengths(x[:size] - x[:size].mean(), float(x[size]) if has_ties else -np.inf)


def _compute_hessian(total: Array, p_win: Array, p_tie: Array, has_ties: bool) -> Array:
    """Of -log L. A comparison scores 1, 1/2 or 0 for i: theta has its variance, log nu that of the ties."""
    mean = p_win + p_tie / 2
    variance = total * (p_win + p_tie / 4 - mean**2)
    # the mean of theta is free: the constant matrix fixes it and leaves the maximum where it is
    theta = np.diag(variance.sum(axis=1)) - variance + total.mean() / len(total)
    if not has_ties:
        return np.asarray(theta)
    cross = (total * p_tie * (0.5 - mean)).sum(axis=1)
    tie = (total * p_tie * (1 - p_tie)).sum() / 2
    return np.block([[theta, cross[:, None]], [cross[None, :], np.array([[tie]])]])


def _predict(theta: Array, log_nu: float) -> tuple[Array, Array]:
    difference = theta[:, None] - theta[None, :]
    # divided by sqrt(pi_i pi_j), the three terms are exp(d/2), exp(-d/2) and nu
    half, nu = np.clip(difference / 2, -300, 300), np.exp(log_nu)
    total = np.exp(half) + np.exp(-half) + nu
    return np.exp(half) / total, nu / total
