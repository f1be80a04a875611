"""Files of a source: names and links that are unusual are skipped with a count, or quarantined with a reason."""

from __future__ import annotations

import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.ingest.curation import curate
from pipelines.ingest.latent_cache import LatentCache
from pipelines.ingest.sources import Track, find_tracks
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError
from presto_core.config.data import IngestConfig


def scan(folder: Path) -> dict[str, Track]:
    return {track.file: track for track in find_tracks(IngestConfig(source=str(folder)))}


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.wav", "sub/b.wav"):
        (folder / name).write_bytes(b"x")
    return folder


def reject(tracks: dict[str, Track], cache_folder: Path) -> dict[str, str]:
    """Return file -> reason of the files that are quarantined without being opened."""
    curated = curate(list(tracks.values()), LatentCache(open_folder(str(cache_folder))))
    return {bad.file: bad.failure.message for bad in curated.bad if not tracks[bad.file].stamp}


def test_resource_forks_of_macos_are_skipped_and_counted(music: Path, capsys: pytest.CaptureFixture[str]):
    (music / "__MACOSX/sub").mkdir(parents=True)
    for name in ("._a.wav", "__MACOSX/sub/._b.wav", "__MACOSX/c.wav"):
        (music / name).write_bytes(b"\0\5\x16\7")
    assert set(scan(music)) == {"a.wav", "sub/b.wav"}
    assert "skipped 3 files of macOS" in " ".join(capsys.readouterr().err.split())


def test_one_file_is_a_source_with_its_sidecar(music: Path, tmp_path: Path):
    """Also of a type that is not searched for, and beside a manifest that lists other files."""
    (music / "a.json").write_text('{"caption": "a tune"}')
    (music / "manifest.jsonl").write_text('{"file": "sub/b.wav"}')
    (music / "c.mp2").write_bytes(b"x")
    (only,) = scan(music / "a.wav").values()
    assert (only.file, only.path, only.sidecars, only.uri) == ("a.wav", "a.wav", ("a.json",), str(music / "a.wav"))
    assert set(scan(music / "c.mp2")) == {"c.mp2"}
    both = find_tracks(IngestConfig(source=(str(music / "a.wav"), str(music / "c.mp2"), str(music / "sub"))))
    assert [track.file for track in both] == ["music/a.wav", "music/c.mp2", "sub/b.wav"]
    rows = '{"file": "a.wav", "caption": "from the list"}\n{"file": "sub/b.wav"}'
    (tmp_path / "rows.jsonl").write_text(rows)
    (row,) = find_tracks(IngestConfig(source=str(music / "a.wav"), manifest=str(tmp_path / "rows.jsonl")))
    assert (row.file, row.caption) == ("a.wav", "from the list")


def test_audio_of_other_types_is_counted(music: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a.mp2", "b.MP2", "c.mov", "notes.pdf"):
        (music / name).write_bytes(b"x")
    assert set(scan(music)) == {"a.wav", "sub/b.wav"}
    printed = " ".join(capsys.readouterr().err.split())
    assert "skipped 3 files of types that are not searched for: 1 .mov, 2 .mp2; convert" in printed


def test_a_plain_folder_prints_nothing(music: Path, capsys: pytest.CaptureFixture[str]):
    assert len(scan(music)) == 2
    assert capsys.readouterr().err == ""


def test_a_name_that_is_not_utf8_is_quarantined_by_its_escaped_name(music: Path, tmp_path: Path):
    for name in (b"caf\xe9.wav", b"n\xe9/d.wav", b"caf\xe9.pdf"):
        path = os.fsencode(music) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(b"x")
    tracks = scan(music)
    reasons = reject(tracks, tmp_path / "cache")
    assert set(reasons) == {r"caf\xe9.wav", r"n\xe9/d.wav"}
    assert all("not UTF-8" in reason for reason in reasons.values())
    assert set(tracks) == {"a.wav", "sub/b.wav", *reasons}


@pytest.mark.parametrize("listed", [True, False])
def test_a_broken_link_is_quarantined_with_its_target(music: Path, tmp_path: Path, listed: bool):
    (music / "gone.wav").symlink_to("nowhere.wav")
    (music / "gone.pdf").symlink_to("nowhere.pdf")
    if listed:
        (music / "manifest.csv").write_text("file\na.wav\ngone.wav\n")
    reasons = reject(scan(music), tmp_path / "cache")
    assert reasons == {"gone.wav": "is a link to nowhere.wav, which does not exist"}


def test_links_are_followed_and_a_circle_of_them_is_walked_once(music: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/c.wav").write_bytes(b"x")
    (music / "linked").symlink_to(tmp_path / "other")
    (music / "c.wav").symlink_to(tmp_path / "other/c.wav")
    (music / "sub/circle").symlink_to("..")
    (music / "self.wav").symlink_to("self.wav")
    tracks = scan(music)
    assert set(tracks) == {"a.wav", "sub/b.wav", "linked/c.wav", "c.wav", "self.wav"}
    reasons = reject(tracks, tmp_path / "cache")
    assert set(reasons) == {"self.wav"}
    assert reasons["self.wav"].startswith("cannot be read: too many levels of symbolic links")


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_subfolder_that_cannot_be_listed_is_named_itself(open_to_all: Path):
    (open_to_all / "sub/locked").mkdir(parents=True)
    (open_to_all / "a.wav").write_bytes(b"x")
    (open_to_all / "sub/locked").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # root may read everything
            os.seteuid(65534)
        with pytest.raises(StoreError, match=rf"cannot list {open_to_all}/sub/locked: permission denied; "):
            scan(open_to_all)
    finally:
        os.seteuid(user)
        (open_to_all / "sub/locked").chmod(0o755)


@pytest.mark.parametrize("path", ["./sub/b.wav", "sub//b.wav", "{source}/sub/b.wav", "sub/./b.wav"])
def test_paths_of_a_manifest_are_found_in_other_spellings(music: Path, path: str):
    (music / "manifest.csv").write_text(f"file\n{path.format(source=music)}\n")
    (track,) = scan(music).values()
    assert (track.file, bool(track.stamp)) == ("sub/b.wav", True)


@pytest.mark.parametrize("is_composed", [True, False])
def test_accents_of_a_manifest_are_found_in_the_other_spelling(music: Path, is_composed: bool):
    spellings = (unicodedata.normalize("NFC", "é.wav"), unicodedata.normalize("NFD", "é.wav"))
    stored, listed = spellings if is_composed else spellings[::-1]
    assert stored != listed
    (music / stored).write_bytes(b"x")
    (music / "manifest.csv").write_text(f"file\n{listed}\n")
    (track,) = scan(music).values()
    assert (track.file, bool(track.stamp)) == (stored, True)
