"""Embedders as a setting: every kind on a small random model of its published class, offline, against that class."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from presto_core.config.evaluation import EmbedderConfig, EmbedderKind
from presto_core.metrics.embedders.codec_latents import average_per_second
from presto_core.metrics.embedders.embedder import Embedder, EmbedderError, TextAudioEmbedder, prepare_audio
from presto_core.metrics.embedders.table import EMBEDDERS, load_embedder, load_embedders
from presto_core.metrics.embedders.vggish import Vggish, VggishLogMel
from presto_core.metrics.embedders.windows import cut_windows
from tests.support.small_embedders import CAPTIONS, WRITERS, write_clap, write_encodec, write_folder, write_mert

KINDS = tuple(WRITERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("embedders")
    return {kind: write_folder(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def embedders(folders: dict[str, Path]) -> dict[str, Embedder]:
    return {kind: load(kind, folder) for kind, folder in folders.items()}


def load(kind: str, folder: Path) -> Any:
    return load_embedder(EmbedderConfig.model_validate({"kind": kind, "path": str(folder)}))


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def music(seconds: float, rate_hz: int, *, clips: int = 1, seed: int = 0) -> Tensor:
    """[B, N]: tones that come and go, other ones in every clip, and noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    hz = rng.uniform(80, rate_hz / 5, (clips, 3, 1))
    tones = (np.sin(2 * np.pi * hz * time) * np.sin(hz / 50 * time)).sum(1)
    return torch.from_numpy(0.1 * (tones + 0.3 * rng.standard_normal(tones.shape))).float()


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- what holds for every kind


def test_the_table_has_a_row_for_every_kind_of_the_config() -> None:
    assert set(EMBEDDERS) == set(get_args(EmbedderKind)) == {"musicnn", *KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_finite_repeatable_and_have_the_stated_length(embedders: dict[str, Embedder], kind: str) -> None:
    embedder = embedders[kind]
    audio = music(3, embedder.sample_rate_hz, clips=2)
    vectors = embedder.embed(audio)
    assert (vectors.dtype, vectors.device.type) == (torch.float32, "cpu")
    assert vectors.shape[0] == 2
    assert vectors.shape[2] == embedder.dim
    assert vectors.isfinite().all()
    assert torch.equal(vectors, embedder.embed(audio))


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_does_not_depend_on_its_batch(embedders: dict[str, Embedder], kind: str) -> None:
    embedder = embedders[kind]
    clips = music(2.5, embedder.sample_rate_hz, clips=3)
    together = embedder.embed(clips)
    alone = torch.cat([embedder.embed(clip[None]) for clip in clips])
    spread = (together[0] - together[1]).abs().max()
    assert (together - alone).abs().max() < 1e-3 * spread


@pytest.mark.parametrize("kind", KINDS)
def test_the_shortest_clip_gives_a_vector_and_a_shorter_one_is_refused(
    embedders: dict[str, Embedder], kind: str
) -> None:
    embedder = embedders[kind]
    samples = round(embedder.patch_seconds * embedder.sample_rate_hz)
    assert embedder.embed(torch.zeros(1, samples)).isfinite().all()
    with pytest.raises(EmbedderError, match=f"shorter than the .* s patch of embedder {embedder.name}"):
        embedder.embed(torch.zeros(1, samples - 1))
    with pytest.raises(ValueError, match=r"mono clips \[B, N\]"):
        embedder.embed(torch.zeros(1, 1, samples))


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_are_counted_and_refused(embedders: dict[str, Embedder], kind: str) -> None:
    audio = music(2, embedders[kind].sample_rate_hz, clips=3)
    audio[1, 7:9], audio[2, 5] = math.nan, -math.inf
    with pytest.raises(EmbedderError, match=rf"3 of {audio.numel()} audio values in 2 of 3 clips"):
        embedders[kind].embed(audio)


@pytest.mark.parametrize("kind", KINDS)
def test_a_digest_stands_for_weights_and_settings(
    embedders: dict[str, Embedder], folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    same, other = copy(folders[kind], tmp_path / kind), copy(folders[kind], tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights[min(weights)] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    (same / "README.md").write_text("a note")
    assert load(kind, same).digest == embedders[kind].digest
    assert load(kind, other).digest != embedders[kind].digest
    if (settings := same / "preprocessor_config.json").is_file():
        edit_json(settings, note="edited")
        assert load(kind, same).digest != embedders[kind].digest


# --- preparing audio


def test_audio_is_the_mean_of_its_channels_at_the_embedders_rate(embedders: dict[str, Embedder]) -> None:
    embedder = embedders["ast"]
    time = torch.arange(44100) / 44100
    left, right = torch.sin(2 * math.pi * 440 * time), torch.sin(2 * math.pi * 600 * time)
    prepared = prepare_audio(torch.stack([left, right])[None], 44100, embedder)
    at_16k = torch.arange(16000) / 16000
    expected = (torch.sin(2 * math.pi * 440 * at_16k) + torch.sin(2 * math.pi * 600 * at_16k)) / 2
    assert prepared.shape == (1, 16000)
    torch.testing.assert_close(prepared[0, 100:-100], expected[100:-100], atol=2e-3, rtol=0)
    assert prepare_audio(torch.stack([left, -left])[None], 44100, embedder).abs().max() == 0


def test_audio_that_cannot_be_prepared_is_refused(embedders: dict[str, Embedder]) -> None:
    audio = torch.zeros(2, 2, 100)
    audio[1, 0, 5] = math.nan
    with pytest.raises(EmbedderError, match=r"1 of 200 audio values in 1 of 2 clips"):
        prepare_audio(audio, 44100, embedders["ast"])
    with pytest.raises(ValueError, match=r"audio of shape \[2, 100\]: clips are \[B, channels, N\]"):
        prepare_audio(torch.zeros(2, 100), 44100, embedders["ast"])


@pytest.mark.parametrize(
    ("samples", "starts", "length"),
    [
        (60, [0], 60),
        (100, [0], 100),
        (104, [0], 100),
        (106, [0, 6], 100),
        (200, [0, 100], 100),
        (250, [0, 75, 150], 100),
    ],
)
def test_windows_cover_a_clip_evenly(samples: int, starts: list[int], length: int) -> None:
    windows = cut_windows(torch.arange(samples)[None], 100)
    assert windows[0].tolist() == [list(range(start, start + length)) for start in starts]


def test_one_vector_per_window_or_second(embedders: dict[str, Embedder]) -> None:
    counts = {kind: e.embed(torch.zeros(1, 12 * e.sample_rate_hz)).shape[1] for kind, e in embedders.items()}
    # the small transformer's window is 2 s, not 10.24 s
    assert counts == {"clap": 2, "vggish": 12, "ast": 6, "encodec": 12, "dac": 12, "mert": 3}


# --- every kind against the published class


def test_clap_gives_transformers_cosines_of_captions_and_clips(folders: dict[str, Path]) -> None:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    embedder, folder = load("clap", folders["clap"]), str(folders["clap"])
    assert isinstance(embedder, TextAudioEmbedder)
    audio = music(10, 48000, clips=2)
    model = ClapModel.from_pretrained(folder).eval()
    sound = ClapFeatureExtractor.from_pretrained(folder)(
        list(audio.numpy()), truncation="rand_trunc", sampling_rate=48000, return_tensors="pt"
    )
    text = AutoTokenizer.from_pretrained(folder)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(
            input_features=sound["input_features"], input_ids=text["input_ids"], attention_mask=text["attention_mask"]
        ).logits_per_audio
        cosines = logits / model.logit_scale_a.exp()
    ours = embedder.embed(audio)[:, 0] @ embedder.embed_text(CAPTIONS).T
    torch.testing.assert_close(ours, cosines, atol=1e-5, rtol=0)


def test_clap_embeds_unit_vectors_and_a_caption_apart_from_its_batch(embedders: dict[str, Embedder]) -> None:
    embedder: Any = embedders["clap"]
    text = embedder.embed_text(CAPTIONS)
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(embedder.embed(music(2, 48000)).norm(dim=-1), torch.ones(1, 1))
    torch.testing.assert_close(embedder.embed_text(CAPTIONS[:1]), text[:1], atol=1e-5, rtol=0)
    assert (text[0] - text[1]).abs().max() > 1e-3


def test_clap_refuses_a_caption_that_it_would_cut(embedders: dict[str, Embedder]) -> None:
    embedder: Any = embedders["clap"]
    assert embedder.embed_text(["cello " * 36]).shape == (1, 24)
    with pytest.raises(EmbedderError, match=r"caption 'cello cello.*' has 39 tokens, and embedder clap reads 38"):
        embedder.embed_text(["a slow cello", "cello " * 37])


def test_clap_that_fuses_long_audio_is_deterministic(tmp_path: Path) -> None:
    """Its feature extractor marks a random clip of each batch as longer than 10 s, and cuts longer ones at random."""
    folder = tmp_path / "fused"
    folder.mkdir()
    torch.manual_seed(0)
    write_clap(folder, fusion=True)
    embedder = load("clap", folder)
    clips = music(3, 48000, clips=3)
    first = embedder.embed(clips)
    assert all(torch.equal(embedder.embed(clips), first) for _ in range(4))
    long = music(25, 48000)
    assert embedder.embed(long).shape == (1, 3, 24)
    assert torch.equal(embedder.embed(long), embedder.embed(long))


def test_ast_gives_the_vector_that_the_published_tagger_classifies(folders: dict[str, Path]) -> None:
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

    model = ASTForAudioClassification.from_pretrained(str(folders["ast"])).eval()
    audio = music(2, 16000, clips=2)
    inputs = ASTFeatureExtractor.from_pretrained(str(folders["ast"]))(
        list(audio.numpy()), sampling_rate=16000, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = model(**inputs).logits
        torch.testing.assert_close(model.classifier(load("ast", folders["ast"]).embed(audio)[:, 0]), expected)


@pytest.mark.parametrize("kind", ["encodec", "dac"])
def test_a_codecs_vector_is_the_mean_of_what_it_quantises(folders: dict[str, Path], kind: str) -> None:
    from transformers import DacModel, EncodecModel

    model = {"encodec": EncodecModel, "dac": DacModel}[kind].from_pretrained(str(folders[kind])).eval()
    check_codec_against(model, load(kind, folders[kind]), channels=1)


def test_the_stereo_encodec_is_given_mono_twice_at_its_own_level(tmp_path: Path) -> None:
    from transformers import EncodecModel

    folder = tmp_path / "stereo"
    folder.mkdir()
    torch.manual_seed(0)
    write_encodec(folder, stereo=True)
    embedder = load("encodec", folder)
    check_codec_against(EncodecModel.from_pretrained(str(folder)).eval(), embedder, channels=2)
    audio = music(2, embedder.sample_rate_hz)
    torch.testing.assert_close(embedder.embed(audio), embedder.embed(audio / 8), atol=1e-4, rtol=1e-4)


def check_codec_against(model: Any, embedder: Any, *, channels: int) -> None:
    """The model's own `encode` of a second, whose latents are caught where its encoder returns them."""
    caught: list[Tensor] = []
    model.encoder.register_forward_hook(lambda *args: caught.append(args[-1]))
    audio = music(1, embedder.sample_rate_hz, clips=2)
    with torch.inference_mode():
        model.encode(audio[:, None].expand(-1, channels, -1))
    # a hop that does not divide the second leaves frames of padding
    expected = caught[0].mean(-1)
    torch.testing.assert_close(embedder.embed(audio)[:, 0], expected, atol=1e-4, rtol=1e-4)


def test_a_codecs_seconds_are_those_of_the_audio(embedders: dict[str, Embedder]) -> None:
    """EnCodec is causal, so a change in the third second leaves the first two alone; the last 0.4 s do not count."""
    embedder = embedders["encodec"]
    rate_hz = embedder.sample_rate_hz
    audio = music(3.4, rate_hz)
    changed = audio.clone()
    changed[:, 2 * rate_hz + rate_hz // 2 : 3 * rate_hz] = 0
    before, after = embedder.embed(audio), embedder.embed(changed)
    assert before.shape[1] == 3
    torch.testing.assert_close(before[:, :2], after[:, :2], atol=1e-5, rtol=1e-5)
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-2
    changed[:, 3 * rate_hz :] = 0
    assert torch.equal(embedder.embed(changed), after)


def test_frames_are_averaged_per_second_where_a_second_has_no_whole_number_of_them() -> None:
    """8 frames in 3 s: seconds end at frames 2.67 and 5.33."""
    means = average_per_second(torch.arange(8.0)[None, None], 3)
    assert means.tolist() == [[[1.0], [3.5], [6.0]]]


def test_mert_is_hubert_on_audio_of_unit_variance(folders: dict[str, Path], tmp_path: Path) -> None:
    """Published checkpoints have MERT's config and the weight norm's former tensor names."""
    from transformers import HubertModel, Wav2Vec2FeatureExtractor

    assert "encoder.pos_conv_embed.conv.weight_g" in load_file(folders["mert"] / "model.safetensors")
    plain = copy(folders["mert"], tmp_path / "hubert")
    edit_json(plain / "config.json", model_type="hubert", architectures=["HubertModel"], auto_map={})
    audio = music(5, 4000, clips=2)
    inputs = Wav2Vec2FeatureExtractor.from_pretrained(str(plain))(
        list(audio.numpy()), sampling_rate=4000, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = HubertModel.from_pretrained(str(plain)).eval()(inputs["input_values"]).last_hidden_state
    torch.testing.assert_close(load("mert", folders["mert"]).embed(audio)[:, 0], hidden.mean(1), atol=1e-5, rtol=1e-4)


# --- VGGish is our own module


def numpy_vggish_log_mel(samples: np.ndarray) -> np.ndarray:
    """Hershey et al.'s features, [N] -> [frames, 64] in float64: one frame, one mel band and one bin at a time."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    edges = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700), 66)
    frames = []
    for at in range(0, len(samples) - 399, 160):
        magnitude = np.abs(np.fft.rfft(samples[at : at + 400] * window, 512))
        bands = np.zeros(64)
        for band in range(64):
            low, centre, high = edges[band : band + 3]
            for k in range(1, 257):
                mel = 1127 * np.log(1 + k * 16000 / 512 / 700)
                bands[band] += magnitude[k] * max(0, min((mel - low) / (centre - low), (high - mel) / (high - centre)))
        frames.append(np.log(bands + 0.01))
    return np.array(frames)


def test_vggish_front_end_equals_a_slow_spectrogram() -> None:
    audio = music(0.2, 16000)
    expected = numpy_vggish_log_mel(audio[0].double().numpy())
    assert expected.shape == (18, 64)
    np.testing.assert_allclose(VggishLogMel()(audio)[0], expected, atol=1e-4)


def test_vggish_network_equals_a_functional_one(folders: dict[str, Path]) -> None:
    """Five stages by hand, and TensorFlow's order of the flattened map: value (t·4 + m)·512 + c."""
    weights = load_file(folders["vggish"] / "model.safetensors")
    log_mel = VggishLogMel()(music(0.975, 16000))[:, None]
    x = log_mel
    for number, pooled in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        x = F.relu(F.conv2d(x, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], padding=1))
        x = F.max_pool2d(x, 2) if pooled else x
    flat = torch.tensor([float(x[0, c, t, m]) for t in range(6) for m in range(4) for c in range(512)])
    for number in (0, 2, 4):
        flat = weights[f"embeddings.{number}.weight"] @ flat + weights[f"embeddings.{number}.bias"]
        flat = F.relu(flat) if number < 4 else flat
    ours = load("vggish", folders["vggish"]).embed(music(0.975, 16000))
    torch.testing.assert_close(ours[0, 0], flat, atol=1e-3, rtol=1e-3)


def test_vggish_has_the_published_number_of_values() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in Vggish().parameters()) == 72_141_184


def test_vggish_patches_do_not_overlap(embedders: dict[str, Embedder]) -> None:
    audio = music(2, 16000)
    both = embedders["vggish"].embed(audio)
    assert both.shape == (1, 2, 128)
    torch.testing.assert_close(embedders["vggish"].embed(audio[:, 96 * 160 :])[:, 0], both[:, 1], atol=1e-4, rtol=1e-4)


def test_vggish_weights_of_another_shape_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["vggish"], tmp_path / "vggish")
    weights = load_file(folder / "model.safetensors")
    weights["features.3.weight"] = torch.zeros(128, 32, 3, 3)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        EmbedderError, match=r"features\.3\.weight in .* has shape \[128, 32, 3, 3\], wanted \[128, 64,"
    ):
        load("vggish", folder)


# --- folders


def test_weights_in_several_files_are_one_embedder(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import ASTModel

    folder = copy(folders["ast"], tmp_path / "ast")
    (folder / "model.safetensors").unlink()
    ASTModel.from_pretrained(str(folders["ast"])).save_pretrained(folder, max_shard_size="30KB")
    assert not (folder / "model.safetensors").exists()
    audio, embedder = music(2, 16000), load("ast", folder)
    assert torch.equal(embedder.embed(audio), load("ast", folders["ast"]).embed(audio))
    last = max(folder.glob("*.safetensors"))
    last.unlink()
    with pytest.raises(EmbedderError, match=f"has no {last.name}; copy the weights there"):
        load("ast", folder)


def test_settings_that_are_no_json_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["dac"], tmp_path / "dac")
    (folder / "config.json").write_text("{")
    with pytest.raises(EmbedderError, match=rf"{folder}/config\.json is no JSON"):
        load("dac", folder)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vggish"])
def test_settings_of_another_type_are_one_message(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = copy(folders[kind], tmp_path / kind)
    name = {"clap": "projection_dim", "encodec": "num_filters", "dac": "n_codebooks"}.get(kind, "hidden_size")
    edit_json(folder / "config.json", **{name: "many"})
    with pytest.raises(EmbedderError, match=f"embedder {kind}: folder {folder} cannot be loaded: .*{name}"):
        load(kind, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_missing_or_empty_is_named_with_the_file_to_put_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        EmbedderError, match=rf"embedder {kind}: there is no folder {tmp_path}/none; copy .*safetensors"
    ):
        load(kind, tmp_path / "none")
    with pytest.raises(EmbedderError, match=rf"embedder {kind}: folder {tmp_path} has no (config\.json|model\.safe)"):
        load(kind, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_weights_are_never_loaded(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = copy(folders[kind], tmp_path / kind)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EmbedderError, match=r"has no model\.safetensors \(pytorch_model\.bin is a pickle"):
        load(kind, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_another_class_is_refused_by_both_names(folders: dict[str, Path], kind: str) -> None:
    other = "dac" if kind != "dac" else "clap"
    with pytest.raises(EmbedderError, match=rf"folder {folders[other]} has a model of class '{other}', wanted "):
        load(kind, folders[other])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vggish"])
def test_a_checkpoint_that_lacks_tensors_is_refused(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Transformers would leave them random and print a warning."""
    folder = copy(folders[kind], tmp_path / kind)
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in sorted(weights) if "encoder" in n and n.endswith("bias"))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EmbedderError, match="lack 1 tensors of the model"):
        load(kind, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weights_are_one_message(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = copy(folders[kind], tmp_path / kind)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EmbedderError, match=rf"embedder {kind}: .*{folder}"):
        load(kind, folder)


@pytest.mark.parametrize("kind", ["clap", "ast", "mert"])
def test_a_missing_preprocessor_is_named(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = copy(folders[kind], tmp_path / kind)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(EmbedderError, match=rf"folder {folder} has no preprocessor_config\.json; copy it there"):
        load(kind, folder)


def test_a_clap_without_its_tokenizer_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["clap"], tmp_path / "clap")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(EmbedderError, match=f"embedder clap: folder {folder} has no tokenizer"):
        load("clap", folder)


@pytest.mark.parametrize("setting", ["feature_extractor_cqt", "deepnorm"])
def test_a_mert_that_needs_remote_code_is_refused(tmp_path: Path, setting: str) -> None:
    folder = tmp_path / "mert"
    folder.mkdir()
    write_mert(folder, **{setting: True})
    with pytest.raises(EmbedderError, match=rf"sets {setting}, which needs the model's remote code"):
        load("mert", folder)


def test_no_code_of_a_folder_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, trace = copy(folders["mert"], tmp_path / "mert"), tmp_path / "ran"
    (folder / "modeling_MERT.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass MERTModel: ...\n")
    load("mert", folder)
    assert not trace.exists()


def test_a_hub_id_out_of_reach_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EmbedderError, match=r"there is no folder laion/no-such-clap, and the hub id .* write 'clap="):
        load("clap", Path("laion/no-such-clap"))


def test_two_embedders_of_one_name_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = copy(folders["dac"], tmp_path / "dac")
    configs = [EmbedderConfig(kind="dac", path=str(path)) for path in (folders["dac"], other)]
    assert [e.name for e in load_embedders([EmbedderConfig(), configs[0]])] == ["musicnn-mtt-penultimate", "dac"]
    with pytest.raises(EmbedderError, match="two embedders are named dac"):
        load_embedders(configs)


def test_a_name_is_made_of_kind_and_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    assert load("dac", copy(folders["dac"], tmp_path / "44 khz, mono")).name == "dac-44-khz-mono"
    assert load("dac", copy(folders["dac"], tmp_path / "dac_44khz")).name == "dac_44khz"
