"""Precision, recall, density and coverage against the `prdc` package and known points, whole and without folds."""

from __future__ import annotations

import numpy as np
import pytest
from prdc import compute_prdc

from presto_core.metrics import distances
from presto_core.metrics.prdc import find_neighbors, prdc
from tests.core.test_distances import Matrix, draws


def publish(generated: Matrix, reference: Matrix, k: int) -> dict[str, float]:
    """The published package's values."""
    values = compute_prdc(real_features=reference, fake_features=generated, nearest_k=k)
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, 0.4), (1.5, 1.0), (1.0, 30.0)])
def test_prdc_equals_the_published_package(k: int, scale: float, shift: float) -> None:
    reference, generated = draws(90, 4), scale * draws(70, 4, seed=1) + shift
    ours = prdc(generated=generated, reference=reference, k=k)
    assert ours == pytest.approx(publish(generated, reference, k), abs=1e-12)


def test_prdc_of_known_points() -> None:
    """On a line, k = 1: real 0, 1, 10 have radii 1, 1, 9; generated 0.4, 0.6, 100 have radii 0.2, 0.2, 99.4."""
    values = prdc(generated=np.array([[0.4], [0.6], [100.0]]), reference=np.array([[0.0], [1.0], [10.0]]), k=1)
    assert values["precision"] == pytest.approx(2 / 3)
    assert values["recall"] == pytest.approx(2 / 3)  # 1 and 10 lie within 99.4 of 100
    assert values["density"] == pytest.approx((2 + 2 + 0) / 3)  # 0.4 and 0.6 lie within 0 and 1, 100 within none
    assert values["coverage"] == pytest.approx(2 / 3)


def test_prdc_refuses_sets_smaller_than_a_neighbourhood() -> None:
    with pytest.raises(ValueError, match="k=5 neighbours need more than 5 samples in each set, not 9 generated and 5 "):
        prdc(generated=draws(9, 2), reference=draws(5, 2), k=5)


@pytest.mark.parametrize("block", [1, 6, 50])
def test_blocks_change_no_value(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(distances, "BLOCK", block)
    generated, reference = 0.8 * draws(40, 4, seed=1) + 0.2, draws(50, 4)
    assert prdc(generated=generated, reference=reference, k=3) == pytest.approx(publish(generated, reference, 3))


def test_leaving_a_fold_out_equals_computing_without_its_rows() -> None:
    generated, reference = 0.8 * draws(60, 3, seed=1) + 0.3, draws(50, 3)
    folds_a, folds_b = np.random.default_rng(0).integers(0, 5, 60), np.random.default_rng(1).integers(0, 4, 50)
    found = find_neighbors(
        generated=generated, reference=reference, k=3, generated_folds=folds_a, reference_folds=folds_b
    )
    assert found.measure() == pytest.approx(publish(generated, reference, 3))
    for fold in range(5):
        expected = publish(generated[folds_a != fold], reference, 3)
        assert found.measure(without_generated=fold) == pytest.approx(expected)
    for fold in range(4):
        expected = publish(generated, reference[folds_b != fold], 3)
        assert found.measure(without_reference=fold) == pytest.approx(expected)


def test_embeddings_that_are_not_finite_are_refused() -> None:
    broken = draws(9, 2)
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 9 generated embeddings are not finite"):
        prdc(generated=broken, reference=draws(9, 2), k=2)
