"""`presto codec roundtrip`: both sides on disk, numbers, names that replace nothing, and messages for bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from infra.cli.main import app
from presto_core.config.loader import ConfigError
from presto_core.errors import UserError
from tests.support.music import notes

RATE_HZ = 44100


def roundtrip(*args: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["codec", "roundtrip", *map(str, args)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture
def song(empty: Path) -> Path:
    soundfile.write("song.wav", np.stack([notes(2.5, seed=1)] * 2, axis=1), RATE_HZ)
    return Path("song.wav")


def list_files(folder: str = ".presto/roundtrip") -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_both_sides_have_one_length_and_one_loudness_and_a_picture(song: Path):
    (result,) = json.loads(roundtrip(song, "--json").stdout)
    assert list_files() == {"song-original.wav", "song-roundtrip.wav", "song-roundtrip.png"}
    sides = [soundfile.read(f".presto/roundtrip/song-{side}.wav")[0] for side in ("original", "roundtrip")]
    assert len(sides[0]) == len(sides[1]) == round(result["seconds"] * RATE_HZ)
    assert np.abs(sides).max() < 1
    assert (result["sample_rate_hz"], result["channels"]) == (44100, 1)
    assert result["latents"] == [64, -(-len(sides[0]) // 2048)]
    assert result["audio_bytes"] / result["latent_bytes"] == pytest.approx(32, rel=0.05)
    assert 0 < result["mel_error_db"] < 6
    assert sorted(Path(path).name for path in result["written"]) == sorted(list_files())


def test_the_table_names_what_was_measured(song: Path):
    printed = roundtrip(song).stdout
    for name in ("latents", "compression", "mel error", "SNR", "loudness", "song-original.wav"):
        assert name in printed


def test_the_same_again_is_written_over_itself_and_other_music_is_not(song: Path):
    for _ in range(2):
        roundtrip(song)
    assert len(list_files()) == 3
    Path("other").mkdir()
    soundfile.write("other/song.flac", notes(2.5, seed=9), RATE_HZ)
    before = Path(".presto/roundtrip/song-original.wav").read_bytes()
    roundtrip("other/song.flac")
    assert "song-2-original.wav" in list_files()
    assert len(list_files()) == 6
    assert Path(".presto/roundtrip/song-original.wav").read_bytes() == before


def test_a_picture_of_somebody_else_stays(song: Path):
    Path("mine").mkdir()
    Path("mine/song-roundtrip.png").write_bytes(b"mine")
    roundtrip(song, "--output", "mine")
    assert Path("mine/song-roundtrip.png").read_bytes() == b"mine"
    assert "song-2-roundtrip.png" in list_files("mine")


def test_folders_and_files_are_taken_once_each_and_bad_ones_are_named(song: Path):
    folder = Path("a[")
    folder.mkdir()
    shutil.copy(song, folder / "red]x.wav")
    shutil.copy(song, folder / "esc\x1b[31m.wav")
    (folder / "broken.wav").write_bytes(b"no music " * 50)
    (folder / "._red]x.wav").write_bytes(b"\0")
    (folder / "notes.txt").write_text("x")
    done = roundtrip(folder, folder / "red]x.wav", song)
    assert "a[/red]x.wav" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert len(list_files()) == 9
    assert "esc_x1b[31m-original.wav" in list_files()
    warning = " ".join(done.stderr.split())
    assert re.search(r"left out 1 of 4 files: a\[/broken\.wav: .*not readable as audio", warning)
    assert "3 files, mean mel error" in warning


def test_a_part_of_a_file_is_chosen_by_start_and_seconds(song: Path):
    whole = soundfile.read(song)[0]
    (result,) = json.loads(roundtrip(song, "--start", "0.25", "--seconds", "0.5", "--json").stdout)
    assert result["seconds"] == pytest.approx(0.5, abs=1e-4)
    audio = soundfile.read(".presto/roundtrip/song-original.wav")[0]
    expected = whole[round(0.25 * RATE_HZ) :][: len(audio), 0]
    assert np.corrcoef(audio, expected)[0, 1] > 0.999


def test_silence_and_one_sample_are_no_errors(empty: Path):
    soundfile.write("silent.wav", np.zeros(9000), RATE_HZ)
    soundfile.write("one.wav", np.array([0.5]), RATE_HZ)
    first, second = json.loads(roundtrip("silent.wav", "one.wav", "--json").stdout)
    assert (first["snr_db"], first["loudness_lufs"]) == (None, None)
    assert second["latents"] == [64, 1]


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (["missing.wav"], UserError, r"missing\.wav does not exist"),
        (["s3://bucket/x.wav"], UserError, r"does not exist; give audio files or folders of this machine"),
        (["empty"], UserError, r"empty holds no audio"),
        (["text.wav"], UserError, r"text\.wav: .*not readable as audio"),
        (["song.wav", "--start", "99"], UserError, r"song\.wav: lasts .* s, so nothing is left after --start 99"),
        (["song.wav", "--output", "text.wav"], UserError, r"--output text\.wav cannot be made a folder"),
        (["song.wav", "codec.kind=mp3"], ConfigError, r"codec\.kind"),
        (["song.wav", "codec.path=nowhere"], UserError, r"nowhere"),
        (["song.wav", "ingest.channels=stereo"], ConfigError, r"ingest\.channels=stereo.* neither an existing file"),
        (["codec.kind=mel_pca"], UserError, r"name an audio file or a folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(song: Path, args: list[str], error: type[UserError], message: str):
    Path("empty").mkdir()
    Path("text.wav").write_text("no music " * 50)
    done = CliRunner().invoke(app, ["codec", "roundtrip", *args])
    assert isinstance(done.exception, error), done.output
    assert re.search(message, str(done.exception))
    assert "\n" not in str(done.exception)


def test_a_dry_run_writes_nothing(song: Path):
    roundtrip(song, "--dry-run")
    assert not Path(".presto").exists()
