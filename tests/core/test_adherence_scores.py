"""From estimates and prompts to shares, floors and intervals; captions to tags; divergence of tags."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta

from presto_core.diffusion.conditioning import UNKNOWN_KEY
from presto_core.metrics.adherence.interval import hit_interval
from presto_core.metrics.adherence.score import (
    ClipMeasurements,
    PromptTargets,
    estimate_adherence_intervals,
    measure_adherence,
)
from presto_core.metrics.adherence.tags import (
    TAGS,
    TOP_TAGS,
    count_tag_hits,
    divergence_matrix,
    find_tags,
    tag_kl,
)
from presto_core.metrics.embedders.musicnn import MusicnnEmbedder


def _make_tags(*names: str) -> np.ndarray:
    """Return probabilities [50] that fall from the first name to the last and are zero elsewhere."""
    values = np.zeros(len(TAGS))
    values[[TAGS.index(name) for name in names]] = np.linspace(0.9, 0.1, len(names))
    return values


# tags


@pytest.mark.parametrize(
    ("caption", "tags"),
    [
        ("Classical chamber music for string quartet in D minor: violin melody", {"strings", "violin"}),
        ("Baroque chorale for church organ in G minor", set()),
        ("Solo harpsichord, running sixteenth notes", {"harpsichord"}),
        ("Flute melody over rippling harp", {"flute", "harp"}),
        ("Electric piano, slap bass and drums", {"drums"}),
        ("Steel drums, acoustic guitar and double bass", {"guitar"}),
        ("Techno, synthesizers and electronic drums", {"techno", "synth", "electronic", "drums"}),
        ("Acoustic guitars without drums, no vocals", {"guitar"}),
        ("CHOIR of wordless voices", {"choir"}),
        ("", set()),
    ],
)
def test_captions_name_the_tags_that_a_reader_finds_in_them(caption: str, tags: set[str]) -> None:
    assert find_tags(caption) == tags


def test_a_tag_is_a_hit_among_the_likeliest_that_captions_can_name() -> None:
    unnamed = ("classical", "slow", "solo")  # rank above, and take no rank of the others
    tags = _make_tags(*unnamed, "piano", "violin", "cello", "harp", "flute", "guitar")
    assert TOP_TAGS == 5
    assert count_tag_hits(tags, {"piano", "flute", "guitar"}) == (2, 3)
    assert count_tag_hits(tags, set()) == (0, 0)
    with pytest.raises(ValueError, match=r"\[1, 49\]"):
        count_tag_hits(tags[:49], {"piano"})


def test_tag_kl_is_the_divergence_of_independent_yes_or_no_tags() -> None:
    generated, reference = np.full((3, 50), 0.5), np.full((7, 50), 0.25)
    expected = 50 * (0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5))
    assert tag_kl(generated=generated, reference=reference) == pytest.approx(expected, rel=1e-12)
    assert tag_kl(generated=reference, reference=reference) == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(0)
    p, q = rng.uniform(0.01, 0.99, (4, 50)), rng.uniform(0.01, 0.99, (5, 50))
    probs = torch.broadcast_tensors(torch.from_numpy(p)[:, None], torch.from_numpy(q)[None])
    independent = torch.distributions.kl_divergence(*map(torch.distributions.Bernoulli, probs)).sum(2).T
    assert divergence_matrix(generated=q, reference=p) == pytest.approx(independent.numpy(), rel=1e-9)


def test_sure_tags_give_a_finite_divergence() -> None:
    sure, absent = np.ones((2, 50)), np.zeros((2, 50))
    assert 0 < tag_kl(generated=absent, reference=sure) < 50 * np.log(1e4)


def test_tags_and_embeddings_of_a_clip_come_from_one_pass() -> None:
    embedder = MusicnnEmbedder()
    audio = 0.1 * torch.randn(2, 7 * 16_000, generator=torch.Generator().manual_seed(0))
    embeddings, tags = embedder.embed_with_tags(audio)
    assert torch.equal(embeddings, embedder.embed(audio))
    assert tags.shape == (2, 2, len(TAGS))
    assert (tags >= 0).all()
    assert (tags <= 1).all()


# shares


def _make_case(num: int = 40, seed: int = 0) -> tuple[ClipMeasurements, PromptTargets]:
    rng = np.random.default_rng(seed)
    captions = [("solo piano", "flute and harp", "church organ")[i % 3] for i in range(num)]
    tempo, key = rng.choice([80.0, 100.0, 120.0, 160.0, np.nan], num), rng.integers(0, 25, num)
    clips = ClipMeasurements(
        np.where(rng.random(num) < 0.5, tempo, rng.choice([40.0, 90.0, 200.0, np.nan], num)),
        np.where((rng.random(num) < 0.5) & (key < 24), key, rng.choice([0.0, 5.0, 19.0, np.nan], num)),
        rng.random((num, 50)),
    )
    return clips, PromptTargets(captions, tempo, key, np.arange(num) // 2, tags=rng.random((num, 50)))


def _is_hit(first: float, second: float) -> bool:
    return abs(first / second - 1) <= 0.04


def test_shares_and_floors_equal_their_definitions_pair_by_pair() -> None:
    clips, prompts = _make_case()
    num, found = len(prompts.captions), measure_adherence(*_make_case())
    own = [(i, i) for i in range(num)]
    other = [(i, j) for i in range(num) for j in range(num) if prompts.groups[i] != prompts.groups[j]]
    assert clips.tags is not None
    for suffix, pairs in (("", own), ("_shuffled", other)):
        tempi = [(clips.tempo_bpm[i], prompts.tempo_bpm[j]) for i, j in pairs if prompts.tempo_bpm[j] > 0]
        assert found[f"tempo_hits{suffix}"] == pytest.approx(np.mean([_is_hit(a, b) for a, b in tempi]))
        octaves = [any(_is_hit(a, b * f) for f in (2, 3, 1 / 2, 1 / 3)) for a, b in tempi]
        assert found[f"tempo_octave_errors{suffix}"] == pytest.approx(np.mean(octaves))
        keys = [clips.key[i] == prompts.key[j] for i, j in pairs if prompts.key[j] != UNKNOWN_KEY]
        assert found[f"key_hits{suffix}"] == pytest.approx(np.mean(keys))
        counts = [count_tag_hits(clips.tags[i], find_tags(prompts.captions[j])) for i, j in pairs]
        assert found[f"tag_hits{suffix}"] == pytest.approx(sum(h for h, _ in counts) / sum(n for _, n in counts))


def test_what_no_prompt_states_is_left_out_and_what_is_unclear_is_counted() -> None:
    nan = np.nan
    clips = ClipMeasurements(np.array([100.0, nan, 90.0]), np.array([nan, 3.0, 4.0]))
    known = PromptTargets(["", "", ""], np.array([101.0, 90.0, nan]), np.full(3, UNKNOWN_KEY), np.arange(3))
    found = measure_adherence(clips, known)
    assert found["tempo_hits"] == 0.5
    assert (found["tempo_prompts"], found["tempo_unclear"], found["key_prompts"]) == (2, 1, 0)
    assert not [name for name in found if name.startswith(("key_hits", "key_score", "tag"))]
    with pytest.raises(ValueError, match="3 clips"):
        measure_adherence(clips, PromptTargets([""], np.ones(1), np.zeros(1, int), np.zeros(1, int)))


def test_prompts_of_one_track_have_no_floor() -> None:
    clips, prompts = _make_case()
    one_track = PromptTargets(prompts.captions, prompts.tempo_bpm, prompts.key, np.zeros(40, int))
    assert not [name for name in measure_adherence(clips, one_track) if name.endswith("_shuffled")]


def test_the_paired_divergence_sees_which_clip_has_which_tags_and_that_of_the_sets_does_not() -> None:
    clips, prompts = _make_case()
    assert prompts.tags is not None
    same = ClipMeasurements(clips.tempo_bpm, clips.key, prompts.tags)
    moved = ClipMeasurements(clips.tempo_bpm, clips.key, np.roll(prompts.tags, 2, axis=0))
    own, other = (measure_adherence(c, prompts, reference_tags=prompts.tags) for c in (same, moved))
    assert own["tag_kl_paired"] == pytest.approx(0, abs=1e-9)
    assert other["tag_kl_paired"] == pytest.approx(own["tag_kl_paired_shuffled"], rel=0.1)
    assert own["tag_kl"] == pytest.approx(other["tag_kl"], abs=1e-9)


# intervals


def test_the_interval_of_unclustered_hits_is_that_of_clopper_and_pearson() -> None:
    hits = (np.arange(400) < 120).astype(float)
    low, high = hit_interval(hits=hits, chances=np.ones(400), groups=np.arange(400), confidence=0.95)
    assert (low, high) == pytest.approx((beta.ppf(0.025, 120, 281), beta.ppf(0.975, 121, 280)), rel=0.01)


def test_copies_of_a_clip_do_not_narrow_the_interval() -> None:
    hits, groups = (np.arange(60) < 20).astype(float), np.arange(60)
    once = hit_interval(hits=hits, chances=np.ones(60), groups=groups, confidence=0.9)
    copies = hit_interval(hits=np.repeat(hits, 8), chances=np.ones(480), groups=np.repeat(groups, 8), confidence=0.9)
    assert copies == pytest.approx(once, abs=0.01)


def test_none_of_n_tracks_leaves_room_for_the_share_that_misses_n_times() -> None:
    low, high = hit_interval(hits=np.zeros(30), chances=np.ones(30), groups=np.arange(30) // 2, confidence=0.95)
    assert low == 0
    assert (1 - high) ** 15 == pytest.approx(0.025)
    with pytest.raises(ValueError, match="two tracks"):
        hit_interval(hits=np.zeros(3), chances=np.ones(3), groups=np.zeros(3, int), confidence=0.95)


@pytest.mark.parametrize(("share", "concentration"), [(0.3, 2.0), (0.85, 4.0), (0.05, 20.0)])
def test_intervals_cover_the_share_of_clustered_hits_as_often_as_they_promise(
    share: float, concentration: float
) -> None:
    """Tracks have shares of their own, drawn from a beta distribution, and 1 to 4 clips each."""
    rng, covered, trials = np.random.default_rng(0), 0, 600
    for _ in range(trials):
        groups = np.repeat(np.arange(50), rng.integers(1, 5, 50))
        of_track = rng.beta(share * concentration, (1 - share) * concentration, 50)
        hits = (rng.random(len(groups)) < of_track[groups]).astype(float)
        low, high = hit_interval(hits=hits, chances=np.ones(len(groups)), groups=groups, confidence=0.95)
        covered += low <= share <= high
    assert 0.925 <= covered / trials <= 1.0


def test_every_share_has_an_interval_around_it_unless_its_tracks_are_few() -> None:
    clips, prompts = _make_case()
    found = measure_adherence(clips, prompts)
    intervals = estimate_adherence_intervals(clips, prompts, confidence=0.95)
    assert set(intervals) == {"tempo_hits", "tempo_octave_errors", "key_hits", "key_score", "tag_hits"}
    assert all(low <= found[name] <= high for name, (low, high) in intervals.items())
    few = PromptTargets(prompts.captions, prompts.tempo_bpm, prompts.key, np.arange(40) % 3)
    assert estimate_adherence_intervals(clips, few, confidence=0.95) == {}
