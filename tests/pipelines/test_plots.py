"""Plots are pictures that show what they are given."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluate import plots
from pipelines.evaluate.mel_levels import compute_mel_levels
from presto_core.config.sections import StepsConfig

CYCLE = [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)]  # matplotlib's first four line colours
RATE_HZ = 44100


def picture(png: bytes) -> np.ndarray:
    """[H, W, 3] of the decoded PNG."""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def is_colored(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """[H, W] where a line of this colour is: white less some ink, thin lines being pale ones."""
    ink, wanted = 255.0 - image, 255.0 - np.array(colour)
    amount = np.linalg.norm(ink, axis=2)
    return (ink @ wanted > 0.99 * amount * np.linalg.norm(wanted)) & (amount > 60)


def pixels_of(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int(is_colored(image, colour).sum())


def system(name: str, role: str, nfe: int, fd: float) -> dict[str, Any]:
    quality = {"fd": fd, "fd_to_teacher": fd / 2, "mmd": fd / 2000, "density": 0.5, "coverage": 0.25}
    costs = {"blocks_run": 6 * nfe, "latency_ms": 40.0 * nfe, "speed_up": 10 / nfe}
    return {
        "name": name,
        "label": name.rsplit(" ", 1)[0],
        "role": role,
        "nfe": nfe,
        "sampler": "heun",
        "total_ms": 40.0 * nfe + 55,
        **quality,
        **costs,
    }


def result_of(*systems: dict[str, Any]) -> dict[str, Any]:
    """An evaluation's result as `presto evaluate` keeps it."""
    return {
        "systems": list(systems),
        "floor": {"fd": 1.5, "mmd": 0.001, "density": 0.9, "coverage": 0.8},
        "split": "test",
        "notes": [],
        "samples": 64,
        "embeddings": {"generated": 128, "reference": 96},
        "embedding": {"name": "musicnn-mtt-penultimate", "digest": "ebb341494c65ee10d3bc"},
        "decoder_digest": "0a1b2c3d4e5f60718293",
        "hardware": {"device": "a <small> machine", "torch": "2", "threads": 1},
        "seed": 7,
        "clip_seconds": 5.94,
    }


RESULT = result_of(
    system("teacher heun 10", "teacher", 10, 5.0),
    system("teacher heun 2", "teacher", 2, 30.25),
    system("L heun 10", "layers", 10, 5.5),
    system("S 1", "generator", 1, 9.0),
    system("S 4", "generator", 4, 6.0),
)


# --- plots


def test_every_role_has_its_curve() -> None:
    """Four roles that noise differently: four lines, the legend's aside."""
    roles = {role: {"kind": "lognormal", "mean": 2.0 * i - 3} for i, role in enumerate(plots.ROLES)}
    image = picture(plots.plot_noise_distributions(StepsConfig.model_validate(roles)))
    assert all(pixels_of(image, colour) > 200 for colour in CYCLE)
    # halfway up, a bell's two flanks lie around its middle; e^2 times the noise is 17.4 dB less signal
    frame = np.nonzero((image.sum(axis=2) < 300).mean(axis=0) > 0.7)[0]
    curves = image[120:210, : frame.max()]  # without the legend
    middles = [np.nonzero(is_colored(curves, colour))[1].mean() for colour in CYCLE]
    pixels_a_decibel = (frame.max() - frame.min()) / (1.1 * (60 + 45))  # matplotlib adds 5 % on either side
    np.testing.assert_allclose(-np.diff(middles), 20 * np.log10(np.e**2) * pixels_a_decibel, atol=5)


def test_quieter_data_moves_the_noise_plot() -> None:
    first, again = plots.plot_noise_distributions(StepsConfig()), plots.plot_noise_distributions(StepsConfig())
    assert first == again
    assert not np.array_equal(picture(first), picture(plots.plot_noise_distributions(StepsConfig(), sigma_data=0.5)))


def test_one_panel_for_each_metric_that_has_points() -> None:
    falling = [(step, 1 / step) for step in range(1, 50)]
    one = picture(plots.plot_losses({"dsm_loss": falling, "never_logged": []}))
    four = picture(plots.plot_losses({f"metric {i}": falling for i in range(4)}))
    assert four.shape[0] == pytest.approx(2 * one.shape[0], abs=2)  # three beside each other, the fourth below
    assert four.shape[1] == pytest.approx(3 * one.shape[1], abs=3)
    assert pixels_of(one, CYCLE[0]) > 100
    assert pixels_of(four, CYCLE[0]) > 300


def test_a_falling_loss_falls() -> None:
    image = picture(plots.plot_losses({"loss": [(0, 1.0), (100, 0.0)]}))
    rows, columns = np.nonzero(is_colored(image, CYCLE[0]))
    assert np.corrcoef(rows, columns)[0, 1] > 0.95  # rows count from the top


def test_a_run_without_metrics_still_gives_a_picture() -> None:
    assert (picture(plots.plot_losses({"dsm_loss": []})) == 255).all()


@pytest.mark.parametrize("plot", [plots.plot_quality_vs_blocks, plots.plot_quality_vs_time])
def test_teacher_and_generator_are_two_curves_and_the_noise_floor_a_third(
    plot: Callable[[dict[str, Any]], bytes],
) -> None:
    image = picture(plot(RESULT))
    assert pixels_of(image, CYCLE[0]) > 100
    assert pixels_of(image, CYCLE[1]) > 100
    alone = picture(plot(result_of(*RESULT["systems"][:2])))
    assert pixels_of(alone, CYCLE[1]) == 0
    lower = RESULT | {"floor": {"mmd": 0.0005}}
    assert not np.array_equal(picture(plot(lower)), image)


def test_intervals_are_drawn() -> None:
    systems = [row | {"intervals": {"mmd": [row["mmd"] / 2, row["mmd"] * 2]}} for row in RESULT["systems"]]
    plain, wide = (picture(plots.plot_quality_vs_blocks(r)) for r in (RESULT, RESULT | {"systems": systems}))
    assert pixels_of(wide, CYCLE[0]) > pixels_of(plain, CYCLE[0])


def test_a_folder_of_audio_has_no_cost_and_no_point() -> None:
    folder = {"name": "musicgen", "label": "musicgen", "role": "folder", "mmd": 0.004}
    with_folder = RESULT | {"systems": [*RESULT["systems"], folder]}
    assert plots.plot_quality_vs_blocks(with_folder) == plots.plot_quality_vs_blocks(RESULT)


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 9.9], "linear"), ([1.0, 10.0], "log"), ([0.0, 100.0], "linear"), ([-1e-4, 5.0], "linear"), ([], "linear")],
)
def test_an_axis_is_logarithmic_if_positive_values_span_a_decade(values: list[float], scale: str) -> None:
    assert plots.choose_scale(values) == scale


def test_the_legend_is_to_the_right_of_the_axes() -> None:
    """Behind the frame's right edge there is ink, and more of it with more models; inside, no text."""

    def ink_right_of_axes(count: int) -> int:
        systems = [system(f"model{n} 4", "teacher", 4, 5.0 + n) for n in range(count)]
        dark = picture(plots.plot_quality_vs_blocks(result_of(*systems))).sum(axis=2) < 600
        edge = np.nonzero(dark.mean(axis=0) > 0.7)[0].max()  # the frame is the longest vertical line
        return int(dark[:, edge + 3 :].sum())

    assert 0 < ink_right_of_axes(1) < ink_right_of_axes(6)


def test_activations_have_a_panel_a_model_and_a_line_a_noise_level() -> None:
    def lines(*sigmas: float) -> list[dict[str, Any]]:
        return [{"sigma": s, "variance": {"0": 1.0, "1": 2.0 + s, "5": 40.0}} for s in sigmas]

    one = picture(plots.plot_hidden_variance({"base": lines(0.1, 5.0)}))
    two = picture(plots.plot_hidden_variance({"base": lines(0.1, 5.0), "L": lines(0.1, 5.0)}))
    assert two.shape[1] == pytest.approx(2 * one.shape[1], abs=3)
    first, last = (68, 1, 84), (253, 231, 37)  # the ends of the colour map
    assert pixels_of(one, first) > 100
    assert pixels_of(one, last) > 100
    assert pixels_of(picture(plots.plot_hidden_variance({"base": lines(0.1)})), last) == 0


def make_tone(hz: float, rate_hz: int, *, level: float = 0.5, seconds: float = 1.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 16000])
def test_a_tone_is_brightest_at_its_height_on_the_mel_scale(rate_hz: int) -> None:
    top_mel = 2595 * np.log10(1 + min(16000, rate_hz / 2) / 700)
    for hz in (250.0, 1000.0, 4000.0):
        image = picture(plots.plot_spectrogram(make_tone(hz, rate_hz), rate_hz))
        assert image.shape == (120, 320, 3)
        row = image[:, 160].sum(axis=1).argmax()
        assert 120 - row == pytest.approx(121 * 2595 * np.log10(1 + hz / 700) / top_mel, abs=1.5)


def test_a_full_scale_sine_has_0_db_and_levels_keep_their_differences() -> None:
    loud, quiet = (
        compute_mel_levels(make_tone(1000.0, RATE_HZ, level=level), RATE_HZ, bands=120, frames=50)[:, 25].max()
        for level in (1.0, 0.01)
    )
    assert loud == pytest.approx(0.0, abs=1.5)  # the tone lies between two bands or two bins
    assert loud - quiet == pytest.approx(40.0, abs=0.1)


def test_all_clips_share_one_scale_of_brightness() -> None:
    loud, quiet = (plots.plot_spectrogram(make_tone(1000.0, RATE_HZ, level=v), RATE_HZ) for v in (0.5, 0.005))
    assert picture(loud).max(axis=(0, 1)).sum() > picture(quiet).max(axis=(0, 1)).sum() + 60


def test_time_runs_from_left_to_right() -> None:
    samples = np.concatenate([np.zeros(RATE_HZ, np.float32), make_tone(1000.0, RATE_HZ)])
    brightness = picture(plots.plot_spectrogram(samples, RATE_HZ)).sum(axis=(0, 2))
    assert brightness[:150].max() < brightness[170:].min()


@pytest.mark.parametrize(
    "samples", [np.zeros(RATE_HZ), np.zeros(100), np.full(RATE_HZ, np.nan)], ids=["silent", "short", "nan"]
)
def test_silence_short_clips_and_broken_ones_are_dark(samples: np.ndarray, recwarn: pytest.WarningsRecorder) -> None:
    image = picture(plots.plot_spectrogram(samples.astype(np.float32), RATE_HZ))
    assert image.shape == (120, 320, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 1
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 16000])
def test_a_spectrogram_with_axes_shows_a_tone_at_its_height(rate_hz: int) -> None:
    """Colour, which silence has not, sits at the tone's share of the axes: up to 16 kHz or half the rate."""

    def row_of(hz: float) -> float:
        samples = (0.5 * np.sin(2 * np.pi * hz * np.arange(rate_hz) / rate_hz)).astype(np.float32)
        image = picture(plots.plot_spectrogram_with_axes(samples, rate_hz, "a tone"))
        warmth = np.maximum(image[:, :, 0] - image[:, :, 2], 0).sum(axis=1)
        return float(np.average(np.arange(len(warmth)), weights=warmth))

    rows = [row_of(hz) for hz in (2000.0, 4000.0, 6000.0)]
    axes_height = 305  # of 385 pixels, the rest being title, ticks and margins
    expected = axes_height * 2000 / min(16000, rate_hz / 2)
    assert rows[0] - rows[1] == pytest.approx(expected, rel=0.05)
    assert rows[1] - rows[2] == pytest.approx(expected, rel=0.05)


def test_silence_gives_a_spectrogram_with_axes_without_warnings(recwarn: pytest.WarningsRecorder) -> None:
    assert (
        len(np.unique(picture(plots.plot_spectrogram_with_axes(np.zeros(RATE_HZ, dtype=np.float32), RATE_HZ, "")))) > 1
    )
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
