"""The page shows everything a report holds, as text and with files of its own folder alone, however odd the report."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from typer.testing import CliRunner

from infra.cli.main import app
from pipelines.evaluate.page.fetch import REPORTS, fetch_report, find_report
from pipelines.evaluate.page.fields import ReportError
from pipelines.evaluate.page.listening import ListeningTable, make_listening_table
from pipelines.evaluate.page.page import normalize_report, render_page
from pipelines.evaluate.page.prompt_grid import draw_prompt_grid
from pipelines.evaluate.page.results import ResultTable, make_tables
from pipelines.inference.lazy_mlflow import save_mlflow_model
from pipelines.registry.names import MEASURED
from pipelines.registry.publish import publish
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import Artifact, artifact_folder, commit_artifact
from presto_core.artifacts.store import DamagedError
from presto_core.config.sections import TrackingConfig
from tests.support.example_report import (
    HOSTILE_CAPTION,
    HOSTILE_NAME,
    PROMPTS,
    SYSTEMS,
    make_report_folder,
    make_result,
)

ID = "ab" * 8


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.inline: dict[str, str] = {}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.inline.setdefault(self.tags[-1][0], data)
        self.text.append(data)

    def sources(self, tag: str) -> list[str]:
        return [str(attributes["src"]) for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_report_folder(tmp_path_factory.mktemp("example"), seconds=0.2)


@pytest.fixture
def folder(example: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(example, tmp_path / "report"))


def change(folder: Path, **values: Any) -> None:
    path = folder / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def read(folder: Path) -> tuple[ListeningTable, list[ResultTable]]:
    result = normalize_report(json.loads((folder / "report.json").read_text()))
    return make_listening_table(result, folder), make_tables(result)


# --- what is shown


def test_every_clip_of_the_report_has_a_player_and_a_picture(folder: Path):
    page = Page(render_page(folder))
    clips = make_result()["clips"]
    assert sorted(map(unquote, page.sources("audio"))) == sorted(clip["audio"] for clip in clips)
    assert {clip["spectrogram"] for clip in clips} < set(map(unquote, page.sources("img")))
    for source in (*page.sources("audio"), *page.sources("img")):
        assert (folder / unquote(source)).is_file()


def test_the_picture_of_a_report_has_every_model_and_prompt(folder: Path):
    table, _ = read(folder)
    picture = Image.open(io.BytesIO(draw_prompt_grid(folder)))
    cells = (len(table.prompts), len(table.columns))
    assert all(size > 100 * count for size, count in zip(picture.size, cells))
    assert len(picture.convert("RGB").getcolors(picture.size[0] * picture.size[1]) or []) > 50


def test_a_report_without_pictures_is_one_message(folder: Path):
    change(folder, clips=[])
    with pytest.raises(ReportError, match=r"no clips with spectrograms; .*save_audio"):
        draw_prompt_grid(folder)


def test_columns_are_real_music_then_the_models_by_role(folder: Path):
    listening, _ = read(folder)
    assert [c.title for c in listening.columns] == ["real (codec)", "teacher", "L", "S", "LS", HOSTILE_NAME]
    assert [c.default for c in listening.columns[1:5]] == ["teacher heun 18", "L heun 18", "S 4", "LS 4"]
    assert listening.columns[4].systems == ["LS 4", "LS 1"]


def test_the_row_of_a_prompt_tells_what_it_wants_and_each_clip_what_was_found(folder: Path):
    listening, _ = read(folder)
    first = listening.prompts[0]
    assert (first.caption, first.facts) == (PROMPTS[0]["caption"], ["72 bpm", "A minor", "seed 0", "track t-0017"])
    by_system = {clip.system: clip for cell in first.cells for clip in cell}
    assert by_system["LS 4"].estimates == [("73 bpm", True), ("A minor", True)]
    assert by_system["LS 1"].estimates == [("144 bpm (octave)", False), ("C major", False)]
    assert by_system["LS 4"].loudness == "played with +2.3 dB; the clip itself has -18.2 LUFS"
    assert listening.prompts[3].cells[0][0].estimates == [("101 bpm", None), ("A minor", None)]


def test_the_table_has_every_metric_that_a_row_has_with_its_interval(folder: Path):
    _, (table, _) = read(folder)
    names = [column.metric.name for column in table.columns]
    row = dict(zip(names, table.systems[0].cells))
    assert {"mmd", "precision", "recall", "density", "coverage", "fd", "tempo_hits", "clipped", "total_ms"} <= set(
        names
    )
    assert (row["mmd"].text, row["mmd"].value, row["mmd"].interval) == ("12.1", 0.0121, "10.1 to 14.1")
    assert row["recall"].interval == ""
    assert [r.name for r in table.systems] == [system[0] for system in SYSTEMS]
    assert [r.name for r in table.controls] == ["real music, train"]


def test_bold_rows_are_those_that_validation_chose_whatever_the_columns_show(folder: Path):
    systems = make_result()["systems"]
    systems[-1]["validation"] = {}  # a folder of clips: chosen for listening, but by no validation
    change(folder, systems=systems)
    _, (table, _) = read(folder)
    assert [r.name for r in table.systems if r.is_chosen] == ["teacher heun 18", "L heun 18", "S 4", "LS 4"]
    systems[4]["mmd"] = 0.001
    change(folder, systems=[row | {"chosen": row["name"] == "LS 1"} for row in systems])
    page = Page(render_page(folder))
    assert sum("chosen" in str(attributes.get("class")) for tag, attributes in page.tags if tag == "tr") == 2
    assert [r.name for r in read(folder)[1][0].systems if r.is_chosen] == ["LS 1"]


def test_the_share_against_prompts_of_other_tracks_is_beside_the_hits_it_belongs_to(folder: Path):
    systems = [row | {"tempo_hits_shuffled": 0.08} for row in make_result()["systems"]]
    del systems[1]["tempo_hits_shuffled"], systems[2]["tempo_hits"]
    change(folder, systems=systems)
    _, (table, _) = read(folder)
    names = [column.metric.name for column in table.columns]
    assert "tempo_hits_shuffled" not in names
    cells = [row.cells[names.index("tempo_hits")] for row in table.systems]
    assert [(cell.text, cell.chance) for cell in cells[:3]] == [("0.61", "0.08"), ("0.61", ""), ("", "")]
    assert "chance" in table.columns[names.index("tempo_hits")].explanation
    assert "(chance 0.08)" in Page(render_page(folder)).text


def test_what_the_fitness_test_could_not_decide_is_in_the_columns_explanation(folder: Path):
    verdict = {"fit": True, "reason": "", "undecided": ["real music and codec round trip", "noise and shuffled frames"]}
    change(folder, fitness={"musicnn-mtt-penultimate": {"mmd": verdict}})
    _, (table, _) = read(folder)
    column = next(column for column in table.columns if column.metric.name == "mmd")
    assert column.warning == ""
    assert column.explanation.endswith("Undecided: real music and codec round trip; noise and shuffled frames")


def test_an_embedder_has_its_own_distances_and_shares_the_costs(folder: Path):
    _, (first, second) = read(folder)
    assert [first.embedder, second.embedder] == ["musicnn-mtt-penultimate", "clap-laion"]
    values = [{c.metric.name: cell for c, cell in zip(t.columns, t.systems[0].cells)} for t in (first, second)]
    assert values[1]["mmd"].value == pytest.approx(0.8 * 0.0121)
    assert values[1]["mmd"].interval == ""  # those of the report are of the first embedder
    assert values[0]["total_ms"] == values[1]["total_ms"]


def test_a_metric_that_fails_its_fitness_test_is_marked_where_it_fails(folder: Path):
    _, (first, second) = read(folder)
    assert {c.metric.name: c.warning for c in first.columns if c.warning} == {"fd": "shrinking improves it"}
    assert [c for c in second.columns if c.warning] == []
    text = Page(render_page(folder)).text
    assert any("FD failed the fitness test" in part for part in text)
    # in the heading, in the explanation of marks, and beside the value of each system and of real music
    assert sum(part == "†" for part in text) == 1 + len(first.systems) + len(first.controls)


def test_a_metric_that_a_row_lacks_is_an_empty_cell(folder: Path):
    systems = make_result()["systems"]
    for name in ("musicnn-mtt-penultimate", "clap-laion"):
        systems[0]["by_embedder"][name].pop("fd", None)
    systems[0].pop("fd")
    change(folder, systems=systems)
    for table in read(folder)[1]:
        column = [c.metric.name for c in table.columns].index("fd")
        assert (table.systems[0].cells[column].text, table.systems[0].cells[column].value) == ("", None)
        assert table.systems[1].cells[column].text
    assert sum(part == "†" for part in Page(render_page(folder)).text) == 1 + len(systems) - 1 + 1


def test_values_that_are_no_numbers_are_shown_as_such_and_missing_ones_blank(folder: Path):
    systems = make_result()["systems"]
    systems[0]["mmd"], systems[1]["mmd"] = float("nan"), None
    for system in systems:
        system["by_embedder"] = {}
    change(folder, systems=systems)
    _, (table,) = read(folder)
    column = [c.metric.name for c in table.columns].index("mmd")
    assert [row.cells[column].text for row in table.systems[:3]] == ["not finite", "", "13.9"]


# --- what a hostile or damaged report can do


def test_hostile_text_becomes_no_tag_and_no_attribute(folder: Path):
    page = Page(render_page(folder))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "b" not in {tag for tag, _ in page.tags}
    assert [name for _, attributes in page.tags for name in attributes if name.startswith("on")] == []
    assert any(HOSTILE_CAPTION in text for text in page.text)
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert all(re.match(r"#\w+$|http://127\.0\.0\.1:5000/", link) for link in links)
    assert sum(link.startswith("http") for link in links) == 2  # the third is javascript:


def test_the_policy_allows_the_pages_own_script_and_style_alone(folder: Path):
    page = Page(render_page(folder))
    policy = next(str(a["content"]) for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inline[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize(
    "name",
    ["../secret.wav", "/etc/hostname", "audio/../../secret.wav", "audio/link.wav", "report.json", 7, None, "a\0.wav"],
)
def test_a_file_outside_the_folder_or_of_another_type_is_never_addressed(folder: Path, name: object):
    (folder.parent / "secret.wav").write_bytes(b"RIFF")
    (folder / "audio" / "link.wav").symlink_to(folder.parent / "secret.wav")
    clips = make_result()["clips"]
    clips[0]["audio"] = name
    change(folder, clips=clips)
    page = Page(render_page(folder))
    assert len(page.sources("audio")) == len(clips) - 1
    assert any("1 clips of the report are not shown" in text for text in page.text)


def test_names_with_special_characters_are_found(folder: Path):
    name = 'audio/50% #1 & "ü"?.wav'
    shutil.copy(folder / "audio" / "S-4-0.wav", folder / name)
    clips = make_result()["clips"]
    clips[0]["audio"] = name
    change(folder, clips=clips)
    assert name in map(unquote, Page(render_page(folder)).sources("audio"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("systems", 3),
        ("systems", ["x"]),
        ("notes", "x"),
        ("clips", {"a": 1}),
        ("models", []),
        ("floor", [1]),
        ("hardware", 1),
    ],
)
def test_a_part_of_the_wrong_type_is_one_message_that_names_it(folder: Path, key: str, value: object):
    change(folder, **{key: value})
    with pytest.raises(ReportError, match=key):
        render_page(folder)
    assert not (folder / "index.html").exists()


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000])
def test_a_report_that_is_no_json_object_is_one_message_that_names_the_file(tmp_path: Path, content: str):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ReportError, match=r"report\.json"):
        render_page(tmp_path)


# --- reports of before


def make_former_report(folder: Path) -> Path:
    """A report of format 1: no prompts, clips known by file names alone, former names, HTML of its own."""
    result = make_result()
    kept = ("samples", "embeddings", "embedding", "decoder_digest", "hardware", "seed", "clip_seconds")
    systems = [
        {"name": "base heun 10", "label": "base", "role": "base", "fd": 5.0, "sampling_ms": 70.0, "blocks": 60},
        {"name": "S 4", "label": "S", "role": "student", "fd": 6.0, "sampling_ms": 9.0, "blocks": 24},
    ]
    former = {key: result[key] for key in kept} | {"systems": systems, "floor": {"fd": 1.5}}
    (folder / "audio").mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(former))
    (folder / "index.html").write_text("<script>evil()</script>")
    for name in ("base-heun-10-0", "base-heun-10-1", "S-4-0", "S-4-1", "real-music-0", "unknown-0", "odd"):
        (folder / "audio" / f"{name}.wav").write_bytes(b"RIFF")
    return folder


def test_a_former_report_is_rendered_with_what_it_has(tmp_path: Path):
    folder = make_former_report(tmp_path / "former")
    listening, (table,) = read(folder)
    assert [c.title for c in listening.columns] == ["real (codec)", "teacher", "S", "unknown"]
    assert [len(prompt.cells[1]) for prompt in listening.prompts] == [1, 1]
    assert {c.metric.name for c in table.columns} == {"fd", "latency_ms", "blocks_run"}
    assert [row.role for row in (*table.systems, *table.controls)] == ["teacher", "generator", "real"]
    page = render_page(folder).read_text()
    assert "evil" not in page
    assert "before data sets had a test split" in page


# --- from an artifact


def commit_report(root: Path, source: Path, *, artifact_id: str = ID, kind: str = "report") -> Artifact:
    files = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    return commit_artifact(
        artifact_folder(open_folder(str(root)), artifact_id),
        kind=kind,
        artifact_id=artifact_id,
        config_yaml="",
        parents={},
        files={**files, "embeddings.safetensors": b"large"},
        details={},
    )


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_only_what_a_page_needs_is_copied(workspace: Path, example: Path):
    artifact = commit_report(workspace / "runs", example)
    folder = fetch_report(artifact)
    assert folder == REPORTS / ID
    copied = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert copied == {name for name in artifact.manifest["files"] if name.endswith((".wav", ".png", "report.json"))}


def test_a_truncated_copy_is_replaced_and_a_complete_one_kept(workspace: Path, example: Path):
    artifact = commit_report(workspace / "runs", example)
    folder = fetch_report(artifact)
    one, other = folder / "audio" / "S-4-0.wav", folder / "audio" / "S-4-1.wav"
    whole, when = one.read_bytes(), other.stat().st_mtime_ns
    one.write_bytes(whole[:100])
    fetch_report(artifact)
    assert one.read_bytes() == whole
    assert other.stat().st_mtime_ns == when


def test_a_damaged_file_of_the_artifact_is_refused(workspace: Path, example: Path):
    artifact = commit_report(workspace / "runs", example)
    path = workspace / "runs" / "artifacts" / ID / "audio" / "S-4-0.wav"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match=r"S-4-0\.wav"):
        fetch_report(artifact)


def test_an_artifact_that_is_no_report_is_refused(workspace: Path, example: Path):
    artifact = commit_report(workspace / "runs", example, kind="generator")
    with pytest.raises(ReportError, match="generator"):
        fetch_report(artifact)


# over 10 s: a new tracking database
def test_a_report_is_found_by_id_by_registry_name_and_by_a_model_that_it_measured(workspace: Path, example: Path):
    tracker, root = open_tracker(TrackingConfig()), str(workspace / "runs")
    report = commit_report(workspace / "runs", example)
    model = commit_report(workspace / "runs", example, artifact_id="cd" * 8, kind="dataset")
    for name, artifact in (("presto-report", report), ("presto-dataset", model)):
        run = tracker.client.create_run(tracker.experiment_id).info.run_id
        publish(
            tracker.client, name, artifact, mlflow_run=run, stage="x", root=open_folder(root), pack=save_mlflow_model
        )
    with pytest.raises(ReportError, match="no report measured"):
        find_report(tracker.client, "presto-dataset@v1", root)
    tracker.client.set_model_version_tag("presto-dataset", "1", f"{MEASURED}report", ID)
    for reference in (ID, "presto-report@v1", "presto-report", "presto-dataset@v1", "cd" * 8, report.uri):
        assert find_report(tracker.client, reference, root).id == ID
    done = CliRunner().invoke(app, ["report", "presto-report", f"storage.root={root}"], catch_exceptions=False)
    assert Path(done.stdout.strip()) == (REPORTS / ID / "index.html").resolve()
    assert (REPORTS / ID / "index.html").is_file()


def test_a_dry_run_looks_the_report_up_and_copies_nothing(workspace: Path, example: Path):
    report = commit_report(workspace / "runs", example)
    root = f"storage.root={workspace / 'runs'}"
    done = CliRunner().invoke(app, ["report", report.id, root, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert not (REPORTS / ID).exists()
    with pytest.raises(ReportError, match=f"no report {'0' * 16}: .* presto registry list presto-report"):
        CliRunner().invoke(app, ["report", "0" * 16, root, "--dry-run"], catch_exceptions=False)


def test_the_command_renders_a_local_folder_in_it_and_its_dry_run_writes_nothing(workspace: Path, folder: Path):
    done = CliRunner().invoke(app, ["report", str(folder), "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert not (folder / "index.html").exists()
    done = CliRunner().invoke(app, ["report", str(folder)], catch_exceptions=False)
    assert done.stdout.strip() == str((folder / "index.html").resolve())
    assert list(workspace.iterdir()) == []
