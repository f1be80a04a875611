"""`presto teacher import`, then data, layers, steps and clips from a random Stable Audio teacher, without a network."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from pipelines.data.dataset import open_dataset, stream_batches
from pipelines.inference.export_formats import ExportRequest, export_model, find_model_licence
from pipelines.inference.generator import GeneratedClip, Generator, open_generator
from pipelines.ingest.latent_cache import write_segment
from pipelines.ingest.shard_writer import SegmentSlice, ShardPlan, ShardWriter
from pipelines.registry.compatibility import check_teacher_matches_dataset
from pipelines.stages import distill_layers, distill_steps, import_teacher
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact, commit_artifact, read_artifact
from presto_core.artifacts.store import StoreError
from presto_core.audio.load_codec import load_codec
from presto_core.config.loader import load_config
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.schema import ImportTeacherStage, IngestStage, LayersStage, StepsStage
from presto_core.errors import UserError
from presto_core.models import hub
from presto_core.models.hub import HubError, explain, is_repository
from presto_core.models.lcm_grid import LcmGrid
from presto_core.models.model_card import ModelCard, load_model
from presto_core.models.recorded_components import OwnFolders
from presto_core.training.state import Cursor
from tests.support.processes import PATIENCE_S, PRESTO, Attempt, wait_for
from tests.support.tiny_teachers import CHANNELS, FRAMES, TOKENS, write_stable_audio

ROWS, SECONDS = 8, 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_audio(tmp_path_factory.mktemp("teacher") / "random-audio", licence="cc-by-4.0")


@pytest.fixture(scope="module")
def store(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder for all tests here."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(mlflow_database, home)}")
        yield home


@pytest.fixture(scope="module")
def teacher(folder: Path, store: Path) -> Artifact:
    return import_teacher.run(make_config(folder))


def make_config(source: object, **model: str) -> ImportTeacherStage:
    keys = {f"model.{name}": value for name, value in model.items()}
    return load_config(ImportTeacherStage, None, {"model.source": str(source), "storage.root": "store"} | keys)


@pytest.fixture(scope="module")
def dataset(folder: Path, teacher: Artifact, store: Path) -> Artifact:
    """Random sounds through the teacher's codec, with captions through its text encoder, as ingest writes them."""
    settings = {
        "codec.kind": "diffusers",
        "codec.path": str(folder),
        "text.kind": "diffusers",
        "text.path": str(folder),
    }
    config = load_config(IngestStage, None, settings | {"text.max_tokens": TOKENS, "ingest.chunk_frames": FRAMES})
    codec = load_codec("diffusers", path=str(folder))
    audio = torch.randn(ROWS, 1, FRAMES * codec.hop, generator=torch.Generator().manual_seed(0)) / 5
    cache, target, scratch = (open_folder(str(store / name)) for name in ("cache", "data", "scratch"))
    latents, starts = codec.encode(audio).numpy().astype(np.float16), np.arange(ROWS, dtype=np.float32) / 4
    write_segment(cache, "ab" * 16, 0, latents=latents, start_seconds=starts)
    writer, shards = ShardWriter(config, cache.uri, target, scratch), []
    for split in ("train", "validation"):
        common = {"caption": "slow piano", "split": split}
        tracks = [{"file": f"{i}.wav", "composition": f"piece {i}", **common} for i in range(ROWS // 2)]
        parts = [SegmentSlice(track, "ab" * 16, 0, ROWS, 2 * i, 2 * i + 2, SECONDS) for i, track in enumerate(tracks)]
        plan = ShardPlan(f"{split}-00000", split, parts)
        writer({"plan": json.dumps({"name": plan.name, "split": split, "parts": [vars(part) for part in parts]})})
        shards.append(json.loads((store / "scratch" / f"{plan.name}.json").read_text())["shard"])
    card = ModelCard(**teacher.manifest["model"])
    stats = {"mean": latents.mean((0, 2)).tolist(), "std": [float(latents.std())] * CHANNELS}
    info = {
        "shards": shards, "latents": {"channels": CHANNELS, "frames": FRAMES, **stats}, "codec": card.codec,
        "text": card.text, "rows": {"train": ROWS, "validation": ROWS, "test": 0},
    }  # fmt: skip
    commit_artifact(
        target, kind="dataset", artifact_id="d" * 16, config_yaml="", parents={}, files={}, details={"dataset": info}
    )
    return read_artifact(target)


def run_layers(teacher: Artifact, dataset: Artifact, **settings: object) -> Artifact:
    keys = {"layers.steps": 2, "layers.global_batch_size": 4, "cluster.num_workers": 0, "storage.root": "store"}
    inputs = {"inputs.dataset": dataset.uri, "inputs.teacher": teacher.id}
    return distill_layers.run(load_config(LayersStage, None, keys | inputs | settings))


def run_steps(teacher: Artifact, dataset: Artifact, layers: Artifact, **settings: object) -> Artifact:
    keys = {
        "steps.generator_updates": 1, "steps.fake_updates_per_generator_update": 1, "steps.global_batch_size": 4,
        "steps.gan.head_layers": 1, "steps.gan.head_channels": 8, "steps.guidance_scale": 3,
        "steps.p_gen": {"kind": "levels", "sigmas": [500, 2.4, 0.996, 0.412]},
        "cluster.num_workers": 0, "storage.root": "store",
    }  # fmt: skip
    inputs = {"inputs.dataset": dataset.uri, "inputs.teacher": teacher.id, "inputs.layers": layers.id}
    return distill_steps.run(load_config(StepsStage, None, keys | inputs | settings))


def test_an_imported_teacher_records_where_it_is_from(teacher: Artifact, folder: Path, capsys):
    source, card = teacher.manifest["source"], ModelCard(**teacher.manifest["model"])
    assert (teacher.kind, source["licence"], source["folder"]) == ("teacher", "cc-by-4.0", "random-audio")
    assert len(source["components"]) == 6
    assert teacher.manifest["self_test"]["largest_relative_error"] < 1e-5
    assert (card.depth, card.sigma_range, card.mean) == (4, [0.3, 500.0], [0.0] * CHANNELS)
    assert card.make_precondition().kind == "v_cosine"
    assert (card.default_schedule.sigma_min, card.default_schedule.sigma_max) == (0.3, 500.0)
    assert import_teacher.run(make_config(folder)).id == teacher.id  # reused
    copy = shutil.copytree(folder, "elsewhere")
    assert import_teacher.run(make_config(copy)).id == teacher.id  # the contents decide
    printed = capsys.readouterr().err
    for text in ("cc-by-4.0", "AutoencoderOobleck", "v_cosine", "0.3 to 500", "ingest.chunk_frames=32"):
        assert text in printed
    network, _ = load_model(open_folder(teacher.uri), teacher.manifest)
    still = [name for name, p in network.named_parameters() if not p.requires_grad and "conditioner" not in name]
    assert still == ["transformer.time_proj.weight"]


def test_batches_have_raw_latents_and_the_timing_of_each_clip(teacher: Artifact, dataset: Artifact):
    card, data = ModelCard(**teacher.manifest["model"]), open_dataset(dataset.uri)
    batch = next(stream_batches(data, seed=0, cursor=Cursor(), global_batch_size=ROWS, card=card))
    stored = next(data.iter_latents("train"))
    assert sorted(batch.x0.flatten().tolist()) == sorted(stored.flatten().tolist())
    assert sorted(batch.cond.timing.tolist()) == [[start / 4, SECONDS] for start in range(ROWS)]
    assert batch.cond.to_unconditional().rows(slice(0, 2)).timing.shape == (2, 2)


@pytest.fixture(scope="module")
def layers(teacher: Artifact, dataset: Artifact) -> Artifact:
    return run_layers(teacher, dataset)


@pytest.fixture(scope="module")
def both(teacher: Artifact, dataset: Artifact, layers: Artifact) -> Artifact:
    return run_steps(teacher, dataset, layers)


def test_a_distilled_teacher_becomes_a_pipeline_whose_import_plays_the_same(
    teacher: Artifact, both: Artifact, folder: Path, store: Path
):
    own = OwnFolders(codec=str(folder), text=str(folder))
    assert find_model_licence(both) == "cc-by-4.0"
    request = ExportRequest(store / "student", "diffusers", budget=3)
    exported = export_model(both, request, own)
    assert any("0.9919" in line for line in exported.lines)
    model = open_generator(both.uri, folders=own).model
    fixed = export_model(both, ExportRequest(store / "fixed", "presto", budget=3))
    sigmas = ScheduleConfig(sigmas=LcmGrid(500.0).list_sigmas(4))
    (expected,) = open_generator(f"{fixed.path}", folders=own).generate("slow jazz piano", seed=3, schedule=sigmas)
    again = import_teacher.run(make_config(exported.path))
    assert (again.kind, again.manifest["source"]["licence"]) == ("generator", "cc-by-4.0")
    (clip,) = open_generator(again.uri, folders=own).generate("slow jazz piano", seed=3)  # at the levels of its card
    np.testing.assert_allclose(clip.audio, expected.audio, atol=2e-4)
    (other,) = open_generator(both.uri, folders=own).generate("slow jazz piano", seed=3, schedule=sigmas)
    assert np.abs(clip.audio - other.audio).max() > 0.01  # of budgets by level
    for artifact in (teacher, both, again):
        assert_edits(open_generator(artifact.uri, folders=own), clip)
    assert model.card.budget
    for wrong, match in (
        (ExportRequest(store / "student", "presto"), "exists"),
        (ExportRequest(store / "x", "diffusers"), "--budget"),
        (ExportRequest(store / "x", "diffusers", budget=9), "budget of 9"),
        (ExportRequest(store / "x", "diffusers", budget=3, dtype="bf16"), "--dtype"),
    ):
        with pytest.raises(UserError, match=match):
            export_model(both, wrong, own)
    with pytest.raises(UserError, match="teacher"):
        export_model(teacher, ExportRequest(store / "x", "diffusers"), own)
    with pytest.raises(UserError, match=r"storage\.codec_folder"):
        export_model(both, ExportRequest(store / "x", "diffusers", budget=3))
    assert not (store / "x").exists()


def test_adapters_end_as_plain_networks(teacher: Artifact, dataset: Artifact):
    layers = run_layers(teacher, dataset, **{"layers.lora.rank": 2, "layers.lora.targets": ["to_q", "ff"]})
    both = run_steps(teacher, dataset, layers, **{"steps.lora.rank": 2})
    before, (middle, card), after = (
        load_model(open_folder(model.uri), model.manifest) for model in (teacher, layers, both)
    )
    assert card.budget
    weights = [network.state_dict() for network in (before[0], middle, after[0])]
    assert weights[1].keys() == weights[2].keys() == weights[0].keys() | {"budget_table"}

    def find_changes(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> set[str]:
        return {name for name, value in old.items() if not torch.equal(value, new[name])} - {"budget_table"}

    changed = find_changes(weights[0], weights[1])
    assert changed
    assert all("transformer_blocks" in name and (".to_q." in name or ".ff." in name) for name in changed)
    more = find_changes(weights[1], weights[2])
    assert any(".to_v." in name for name in more)
    assert all("transformer_blocks" in name and name.endswith(".weight") for name in changed | more)


def test_layers_steps_and_clips_from_an_imported_teacher(
    teacher: Artifact, dataset: Artifact, layers: Artifact, both: Artifact
):
    before = load_model(open_folder(teacher.uri), teacher.manifest)[0].state_dict()
    own = teacher.manifest["model"]["codec"]["path"]
    for model in (layers, both):
        card, after = ModelCard(**model.manifest["model"]), load_model(open_folder(model.uri), model.manifest)[0]
        assert card.precondition == {"kind": "v_cosine"}
        moved = {name for name, value in after.state_dict().items() if name in before and (value != before[name]).any()}
        assert moved
        assert not [name for name in moved if name.startswith("conditioner.") or "time_proj.weight" in name]
    for model, steps in ((teacher, 2), (both, 4)):
        with pytest.raises(StoreError, match=r"storage\.text_folder"):
            open_generator(model.uri).generate("slow jazz piano")
        generator = open_generator(model.uri, folders=OwnFolders(codec=own, text=own))
        (clip,) = generator.generate("slow jazz piano", steps=steps, seed=1)
        assert clip.audio.shape == (2, FRAMES * 64)
        assert np.isfinite(clip.audio).all()
        (shorter,) = generator.generate("slow jazz piano", steps=steps, seed=1, seconds=0.1)
        assert shorter.audio.shape == (2, 800)
        with pytest.raises(UserError, match="longer than"):
            generator.generate("slow jazz piano", steps=steps, seconds=9)
        with pytest.raises(UserError, match=r"tempo_bpm=120 has no effect .* write '120 bpm' in the prompt"):
            generator.generate("slow jazz piano", steps=steps, tempo_bpm=120)
        with pytest.raises(UserError, match="key=Am has no effect"):
            generator.edit(clip, "harp", steps=steps, key="Am")
    with pytest.raises(UserError, match="crop_frames"):
        run_layers(teacher, dataset, **{"data.crop_frames": 8})


@pytest.mark.slow
def test_killed_runs_with_an_imported_teacher_end_with_the_same_bits(
    teacher: Artifact, dataset: Artifact, layers: Artifact, store: Path, tmp_path: Path
):
    """Adapters, killed with -9 after the first checkpoint and after the third, against a run that was left alone."""
    homes = [Path(shutil.copytree(store, tmp_path / name)) for name in ("alone", "killed")]
    command = [
        PRESTO, "distill-steps", f"inputs.dataset={dataset.uri}", f"inputs.teacher={teacher.id}",
        f"inputs.layers={layers.id}", "steps.generator_updates=8", "steps.fake_updates_per_generator_update=1",
        "steps.global_batch_size=4", "steps.gan.head_layers=1", "steps.gan.head_channels=8", "steps.lora.rank=2",
        "steps.p_gen.sigma_min=0.3", "steps.p_gen.sigma_max=500", "cluster.num_workers=0", "storage.root=store",
        "loop.checkpoint_every=1",
    ]  # fmt: skip

    def attempt(home: Path) -> Attempt:
        return Attempt(command, home, {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db"})

    def kill_after(checkpoint: int) -> None:
        run, written = attempt(homes[1]), f"store/runs/*/checkpoints/*{checkpoint}*"
        assert wait_for(lambda: not run.is_running or any(homes[1].glob(written)), PATIENCE_S)
        run.kill()
        run.end()

    for checkpoint in (1, 3):
        kill_after(checkpoint)
    assert [attempt(home).exit_code() for home in homes] == [0, 0]
    before = {path.name for path in (store / "store/artifacts").iterdir()}
    made = [[path for path in (home / "store/artifacts").iterdir() if path.name not in before] for home in homes]
    assert len(made[0]) == len(made[1]) == 1
    weights = [(folders[0] / "weights.safetensors").read_bytes() for folders in made]
    assert (made[0][0].name, weights[0]) == (made[1][0].name, weights[1])


def assert_edits(generator: Generator, clip: GeneratedClip) -> None:
    """A region keeps what is around it; a continuation, what is before it."""
    third = clip.seconds / 3
    edited = generator.edit(clip, "harp", regions=[(third, 2 * third)], steps=2, seed=1)
    longer = generator.extend(clip, "harp", seconds=0.2, steps=2, seed=1)
    for made in (edited, longer):
        assert made.kept
        for part in made.list_kept_slices():
            assert np.array_equal(made.audio[:, part], clip.audio[:, part])
    assert not np.array_equal(edited.audio, clip.audio)


def test_data_of_other_encoders_is_refused_with_the_settings_to_use(teacher: Artifact, dataset: Artifact):
    other = Artifact(dataset.id, dataset.kind, dataset.uri, json.loads(json.dumps(dataset.manifest)))
    other.manifest["dataset"]["text"]["digest"] = "0"
    with pytest.raises(UserError, match=r"text\.kind=diffusers"):
        check_teacher_matches_dataset(teacher, other)


@pytest.mark.parametrize(
    ("source", "model", "named"),
    [("", {}, "nothing to import"), ("./nowhere", {}, "nowhere"), (".", {"revision": "main"}, "model.revision=main")],
)
def test_bad_sources_are_refused_before_a_run_begins(source: str, model: dict[str, str], named: str, store: Path):
    with pytest.raises(UserError, match=named):
        import_teacher.run(make_config(source, **model))


class Hub(BaseHTTPRequestHandler):
    """Answers every request as the hub does for one kind of repository."""

    def do_GET(self) -> None:
        code = {"gated": "GatedRepo", "missing": "RepoNotFound", "old": "RevisionNotFound"}[self.path.split("/")[4]]
        self.send_response(403 if code == "GatedRepo" else 404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    import huggingface_hub
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", uri)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    original = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: original(*a, cache_dir=tmp_path, endpoint=uri, **k)
    )
    yield uri
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("name", "hint"), [("gated", "HF_TOKEN"), ("missing", "no folder"), ("old", "no revision")])
def test_a_repository_that_cannot_be_fetched_gives_one_message(name: str, hint: str, hub_server: str):
    with pytest.raises(HubError) as refused:
        hub.fetch_settings(f"someone/{name}", "v9")
    assert f"someone/{name}" in str(refused.value)
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("offline", "cause"), [(True, "HF_HUB_OFFLINE is set"), (False, "no connection")])
def test_a_hub_out_of_reach_gives_one_message_and_begins_no_run(
    offline: bool, cause: str, hub_server: str, store: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub
    from huggingface_hub import constants

    with socket.socket() as closed:  # bound and never listened on: a connection to it is refused
        closed.bind(("127.0.0.1", 0))
        uri, fetch = f"http://127.0.0.1:{closed.getsockname()[1]}", huggingface_hub.snapshot_download
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setenv("HF_HUB_OFFLINE", str(int(offline)))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: fetch(*a, **k | {"endpoint": uri}))
        before = sorted(store.rglob("manifest.json"))
        with pytest.raises(HubError) as refused:
            import_teacher.run(make_config("someone/absent"))
    assert cause in str(refused.value)
    assert "someone/absent" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(store.rglob("manifest.json")) == before


def test_a_bad_folder_is_refused_before_a_run_begins(folder: Path, store: Path, tmp_path: Path):
    from mlflow import MlflowClient

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n")
    client = MlflowClient()

    def list_runs() -> list[str]:
        found = [experiment.experiment_id for experiment in client.search_experiments()]
        return sorted(run.info.run_id for run in client.search_runs(found))

    before = list_runs(), sorted(store.rglob("manifest.json"))
    with pytest.raises(UserError, match=r"cc-by-nd-4\.0.*model\.licence"):
        import_teacher.run(make_config(copy))
    assert (list_runs(), sorted(store.rglob("manifest.json"))) == before


def test_no_network_gives_one_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in explain(OSError("x"), "a/b", "")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "no connection" in explain(ConnectionError("x"), "a/b", "")


def test_a_folder_that_exists_is_never_taken_for_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert is_repository("stabilityai/stable-audio-open-1.0")
    (tmp_path / "a" / "b").mkdir(parents=True)
    for text in ("a/b", "./x/y", "/x/y", "../x", "x", "s3://a/b", "x/y/z"):
        assert not is_repository(text)
