"""The Bradley-Terry model with ties: closed forms for two systems, and strengths that are given back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines.evaluate.listening.bradley_terry import add_pseudo_wins, fit_bradley_terry


def test_strengths_of_two_systems_are_the_log_odds_of_their_wins():
    wins, ties = np.array([[0.0, 30.0], [12.0, 0.0]]), np.array([[0.0, 8.0], [8.0, 0.0]])
    fitted = fit_bradley_terry(wins, ties)
    # Davidson (1970) for K = 2: pi_1 / pi_2 = w_12 / w_21 and nu = t / sqrt(w_12 w_21)
    assert fitted.theta[0] - fitted.theta[1] == pytest.approx(math.log(30 / 12), abs=1e-5)
    assert fitted.log_nu == pytest.approx(math.log(8 / math.sqrt(30 * 12)), abs=1e-5)
    np.testing.assert_allclose(fitted.predict_preference(), [(30 + 4) / 50, (12 + 4) / 50], atol=1e-6)


def test_without_ties_two_systems_have_the_log_odds_too():
    fitted = fit_bradley_terry(np.array([[0.0, 9.0], [3.0, 0.0]]), np.zeros((2, 2)))
    assert fitted.theta[0] - fitted.theta[1] == pytest.approx(math.log(3), abs=1e-5)
    assert fitted.log_nu == -math.inf


def test_expected_counts_give_back_the_strengths_they_were_made_with():
    theta, nu, n = np.array([1.5, 0.5, -0.7, -1.3]), 0.8, 40.0
    half = (theta[:, None] - theta[None, :]) / 2
    total = np.exp(half) + np.exp(-half) + nu
    off = 1 - np.eye(4)
    fitted = fit_bradley_terry(n * off * np.exp(half) / total, n * off * nu / total)
    np.testing.assert_allclose(fitted.theta, theta, atol=1e-5)
    assert fitted.log_nu == pytest.approx(math.log(nu), abs=1e-5)


def test_a_system_that_always_wins_has_a_finite_strength():
    wins = np.array([[0.0, 12.0], [0.0, 0.0]])
    added = add_pseudo_wins(wins, ties=np.zeros((2, 2)))
    fitted = fit_bradley_terry(added, np.zeros((2, 2)))
    assert fitted.theta[0] - fitted.theta[1] == pytest.approx(math.log(12.5 / 0.5), abs=1e-4)
    assert added[0, 0] == 0


def test_systems_that_were_never_compared_are_refused():
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[1, 0] = wins[2, 3] = 1
    with pytest.raises(ValueError, match="do not connect"):
        fit_bradley_terry(wins, np.zeros((4, 4)))
