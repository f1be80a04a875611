"""Spectrograms as PNG, small ones for players and ones with axes, by Pillow: importing matplotlib takes seconds."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.console import console
from pipelines.evaluate.magma import MAGMA
from pipelines.evaluate.mel_levels import HIGHEST_HZ, Samples, compute_mel_levels
from presto_core.extras import MissingPackageError, check_extra, find_package_folder, import_extra

PURPOSE = "drawing spectrograms"
PICTURE_WIDTH, PICTURE_HEIGHT = 320, 120
PICTURE_RANGE_DB = (-90.0, -10.0)
WINDOW, HOP = 2048, 512  # samples
DENSITY_RANGE_DB = (-140.0, -30.0)  # power per Hz
PANEL_WIDTH, PANEL_HEIGHT = 990, 385  # pixels of one clip with its axes
LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 88, 28, 893, 305  # of the spectrogram in its panel
TICK, TEXT_SIZE, TITLE_SIZE = 5, 15, 18
MOST_TICKS = 9
FONT = Path("mpl-data/fonts/ttf/DejaVuSans.ttf")
BLACK, WHITE = 0, 255


def plot_spectrogram(samples: Samples, rate_hz: int) -> bytes:
    """Log-mel spectrogram of mono audio [N] as a small picture without axes, for players.

    Decibels refer to a sine at full scale, on one scale for all clips: what is louder is brighter.
    """
    levels_db = compute_mel_levels(samples, rate_hz, bands=PICTURE_HEIGHT, frames=PICTURE_WIDTH)
    return _to_png(_make_picture(levels_db, PICTURE_RANGE_DB))


def plot_spectrogram_with_axes(samples: Samples, rate_hz: int, title: str) -> bytes:
    """Level over time and frequency of mono audio [N], with axes and a title."""
    return plot_spectrograms_with_axes({title: samples}, rate_hz)


def plot_spectrograms_with_axes(clips: Mapping[str, Samples], rate_hz: int) -> bytes:
    """The same of several clips by title, one above the other, on one scale of time."""
    image = import_extra("PIL.Image", PURPOSE)
    sheet = image.new("RGB", (PANEL_WIDTH, PANEL_HEIGHT * len(clips)), "white")
    seconds = max(len(samples) for samples in clips.values()) / rate_hz
    for number, (title, samples) in enumerate(clips.items()):
        panel = _draw_panel(samples, rate_hz, title, seconds=max(seconds, HOP / rate_hz))
        sheet.paste(panel, (0, number * PANEL_HEIGHT))
    return _to_png(sheet)


def check_spectrograms(command: str, count: int) -> bool:
    """Return whether spectrograms can be drawn; if not, print how many a command skips."""
    try:
        check_extra("plots", PURPOSE)
    except MissingPackageError as error:
        console.print(f"{command}: {count} spectrograms skipped: {error}", markup=False)
        return False
    return True


def compute_density(samples: Samples, rate_hz: int) -> Samples:
    """Power per Hz in dB, [bins, frames], low frequencies first: one-sided, in Hann windows."""
    padded = np.pad(np.nan_to_num(samples.astype(np.float32)), (0, max(0, WINDOW - len(samples))))
    hann = np.hanning(WINDOW).astype(np.float32)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * hann
    power = np.abs(np.fft.rfft(pieces, axis=1)) ** 2 * (2 / (rate_hz * float((hann * hann).sum())))
    return (10 * np.log10(np.maximum(power.T, 1e-30))).astype(np.float32)


def _draw_panel(samples: Samples, rate_hz: int, title: str, *, seconds: float) -> Any:
    image = import_extra("PIL.Image", PURPOSE)
    panel = image.new("RGB", (PANEL_WIDTH, PANEL_HEIGHT), "white")
    drawing = import_extra("PIL.ImageDraw", PURPOSE).Draw(panel)
    top_hz = min(HIGHEST_HZ, rate_hz / 2)
    density = compute_density(samples, rate_hz)
    rows = max(1, round(len(density) * top_hz / (rate_hz / 2)))
    width = max(1, round(PLOT_WIDTH * len(samples) / rate_hz / seconds))
    picture = _make_picture(density[:rows], DENSITY_RANGE_DB, size=(width, PLOT_HEIGHT))
    panel.paste("black", (LEFT, TOP, LEFT + PLOT_WIDTH, TOP + PLOT_HEIGHT))
    panel.paste(picture.convert("RGB"), (LEFT, TOP))
    drawing.rectangle((LEFT - 1, TOP - 1, LEFT + PLOT_WIDTH, TOP + PLOT_HEIGHT), outline="black")
    _draw_title(drawing, title)
    font = _load_font(TEXT_SIZE)
    bottom = TOP + PLOT_HEIGHT
    for hz in _choose_ticks(top_hz):
        y = bottom - round(PLOT_HEIGHT * hz / top_hz)
        drawing.line((LEFT - 1 - TICK, y, LEFT - 1, y), fill="black")
        drawing.text((LEFT - 2 * TICK, y), f"{hz:g}", fill="black", font=font, anchor="rm")
    for second in _choose_ticks(seconds):
        x = LEFT + round(PLOT_WIDTH * second / seconds)
        drawing.line((x, bottom, x, bottom + TICK), fill="black")
        drawing.text((x, bottom + 2 * TICK), f"{second:g}", fill="black", font=font, anchor="ma")
    drawing.text((LEFT + PLOT_WIDTH // 2, PANEL_HEIGHT - TICK), "seconds", fill="black", font=font, anchor="md")
    label = image.new("RGB", (3 * TEXT_SIZE, TEXT_SIZE + TICK), "white")
    import_extra("PIL.ImageDraw", PURPOSE).Draw(label).text((0, 0), "Hz", fill="black", font=font)
    panel.paste(label.rotate(90, expand=True), (TICK, TOP + PLOT_HEIGHT // 2 - TEXT_SIZE))
    return panel


def _draw_title(drawing: Any, title: str) -> None:
    """Write the title on one line above the middle, shortened to the panel's width."""
    text, font = " ".join(title.split()), _load_font(TITLE_SIZE)
    shown = text
    while drawing.textlength(shown, font=font) > PANEL_WIDTH - 4 * TICK:
        text = text[: int(len(text) * 0.95)]
        shown = f"{text.rstrip()}…"
    drawing.text((PANEL_WIDTH // 2, TOP // 2 - 2), shown, fill="black", font=font, anchor="mm")


def _make_picture(levels_db: Samples, range_db: tuple[float, float], size: tuple[int, int] | None = None) -> Any:
    """Levels [bands, frames], low frequencies first, as a picture with a palette: a quarter of the bytes of colours."""
    low_db, high_db = range_db
    shades = (255 * (levels_db[::-1] - low_db) / (high_db - low_db)).clip(0, 255).astype(np.uint8)
    image = import_extra("PIL.Image", PURPOSE)
    picture = image.fromarray(shades, mode="L")
    if size is not None:
        picture = picture.resize(size, image.Resampling.HAMMING)
    picture.putpalette(MAGMA)
    return picture


def _load_font(size: int) -> Any:
    """Matplotlib's DejaVu, which has more scripts than Pillow's own font; that one where a build has no FreeType."""
    fonts = import_extra("PIL.ImageFont", PURPOSE)
    try:
        return fonts.truetype(str(find_package_folder("matplotlib", PURPOSE) / FONT), size)
    except (ImportError, OSError):
        return fonts.load_default()


def _choose_ticks(top: float) -> list[float]:
    """Round numbers from 0 to `top`, at most nine, equally far apart."""
    power = 10.0 ** math.floor(math.log10(top / MOST_TICKS))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if top / (power * factor) < MOST_TICKS)
    return [round(number * step, 6) for number in range(int(top / step + 1e-9) + 1)]


def _to_png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
