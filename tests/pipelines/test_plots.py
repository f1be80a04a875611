"""Plots are pictures that show what they are given; the page and the table hold every system and every sound."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluate import plots, report
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
    quality = {"fd": fd, "fd_to_teacher": fd / 2, "mmd": 0.0123, "density": 0.5, "coverage": 0.25}
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
    middles = [np.nonzero(is_colored(image, colour)[120:210])[1].mean() for colour in CYCLE]
    pixels_a_decibel = 602 / 100  # between the ticks of -40 and 60 dB
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


def test_teacher_and_generator_are_two_curves_and_the_noise_floor_a_third() -> None:
    image = picture(plots.plot_quality_vs_blocks(RESULT))
    assert pixels_of(image, CYCLE[0]) > 100
    assert pixels_of(image, CYCLE[1]) > 100
    alone = picture(plots.plot_quality_vs_blocks(result_of(*RESULT["systems"][:2])))
    assert pixels_of(alone, CYCLE[1]) == 0
    lower = RESULT | {"floor": {"fd": 1.0}}
    assert not np.array_equal(picture(plots.plot_quality_vs_blocks(lower)), image)


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


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 16000])
def test_a_spectrogram_shows_a_tone_at_its_height(rate_hz: int) -> None:
    """Colour, which silence has not, sits at the tone's share of the axes: up to 16 kHz or half the rate."""

    def row_of(hz: float) -> float:
        samples = (0.5 * np.sin(2 * np.pi * hz * np.arange(rate_hz) / rate_hz)).astype(np.float32)
        image = picture(plots.plot_spectrogram(samples, rate_hz, "a tone"))
        warmth = np.maximum(image[:, :, 0] - image[:, :, 2], 0).sum(axis=1)
        return float(np.average(np.arange(len(warmth)), weights=warmth))

    rows = [row_of(hz) for hz in (2000.0, 4000.0, 6000.0)]
    axes_height = 305  # of 385 pixels, the rest being title, ticks and margins
    expected = axes_height * 2000 / min(16000, rate_hz / 2)
    assert rows[0] - rows[1] == pytest.approx(expected, rel=0.05)
    assert rows[1] - rows[2] == pytest.approx(expected, rel=0.05)


def test_silence_gives_a_spectrogram_without_warnings(recwarn: pytest.WarningsRecorder) -> None:
    assert len(np.unique(picture(plots.plot_spectrogram(np.zeros(RATE_HZ, dtype=np.float32), RATE_HZ, "")))) > 1
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


# --- the page


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text of table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data

    def sources(self, tag: str) -> list[str | None]:
        return [attributes.get("src") for name, attributes in self.tags if name == tag]


def test_the_page_plays_every_sound_and_shows_every_system() -> None:
    sounds = [f"audio/{name}-{i}.wav" for name in ("base-heun-10", "S-1") for i in range(3)]
    page = Page(report.to_html(RESULT, sounds))
    assert page.sources("audio") == sounds
    assert page.sources("img") == ["quality_vs_blocks.png", "hidden_variance.png"]
    assert all(attributes["preload"] == "none" for tag, attributes in page.tags if tag == "audio")
    assert [a.get("class") for tag, a in page.tags if tag == "tr" and "class" in a] == ["teacher"] * 2 + ["layers"] + [
        "generator"
    ] * 2
    for wanted in ("teacher heun 10", "S 4", "30.25", "15.12", "12.3", "real music (noise floor)", "base-heun-10-2"):
        assert wanted in page.cells
    columns = 1 + len(report.COLUMNS)
    assert len(page.cells) == columns * (1 + len(RESULT["systems"]) + 1) + 2 * len(sounds)


def test_names_and_captions_are_text_and_never_tags() -> None:
    evil = "<script>alert('x')</script> & \"more\""
    page = Page(report.to_html(result_of(system(evil, "teacher", 1, 2.0)), [f"audio/{evil}.wav"]))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "small" not in {tag for tag, _ in page.tags}  # the name of the hardware
    assert page.cells.count(evil) == 2  # the system's row and the sound's
    assert page.sources("audio") == [f"audio/{evil}.wav"]


def test_the_page_describes_how_it_was_measured() -> None:
    page = report.to_html(RESULT, [])
    for wanted in ("128 patches of 64 clips", "96 held-out ones", "ebb341494c65", "5.9 s clip", "Seed 7"):
        assert wanted in page


# --- the table


def test_the_table_prints_every_row_and_column_uncut(capsys: pytest.CaptureFixture[str]) -> None:
    guided = system("teacher dpmpp_2m 40 w=1.5", "teacher", 40, 31.47)  # as long as names get
    report.print_table(result_of(guided, *RESULT["systems"]))
    printed = capsys.readouterr().out
    for row in RESULT["systems"]:
        (line,) = [line for line in printed.splitlines() if "│" in line and row["name"] in line]
        for metric in report.COLUMNS:
            assert metric.format_value(row[metric.name]) in line
    for metric in report.COLUMNS:
        assert all(part in printed for part in metric.title.split())
    assert "real music" in printed
    assert "…" not in printed
    assert "Fréchet distance" in printed
    assert max(map(len, printed.splitlines())) <= 118
