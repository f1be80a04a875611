"""The training stream is complete, disjoint, reproducible, resumable at any row, and verified by hashes."""

import io
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from blake3 import blake3

from pipelines.data import epoch_plan, shard_reader
from pipelines.data.batch_reader import EpochRead, EpochReader
from pipelines.data.collate import make_conditioning
from pipelines.data.dataset import LatentDataset, open_dataset, stream_batches
from pipelines.data.epoch_plan import EpochPlan, shards_to_read
from pipelines.data.shard_reader import find_damaged_shards, read_with_ray, read_with_threads
from pipelines.data.shards import FullRows, to_parquet
from presto_core.artifacts.store import StoreError
from presto_core.diffusion.conditioning import UNKNOWN_KEY
from presto_core.training.state import Batch, Cursor
from tests.support.synthetic_dataset import make_dataset, rows


@pytest.fixture
def latents(tmp_path) -> LatentDataset:
    return make_dataset(str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("splits", "validation", "test"),
    [
        (("validation", "test"), "validation", "test"),
        (("held_out",), "held_out", "held_out"),  # made before validation and test were apart
        (("validation",), "validation", "validation"),
        (("test",), "validation", "test"),
        ((), "validation", "validation"),
    ],
)
def test_a_table_of_a_data_set_without_test_rows_gets_a_note(
    tmp_path, splits: tuple[str, ...], validation: str, test: str
):
    data = make_dataset(str(tmp_path / "data"), splits=splits)
    assert (data.validation_split, data.test_split) == (validation, test)
    assert bool(data.test_split_note) == ("test" not in splits)
    if data.test_split_note:
        assert data.test_split_note.startswith("data set 0000000000000000 has no test split")
    for split in splits:
        assert sum(shard.rows for shard in data.shards(split)) == 8


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_empty_split_names_the_settings_that_fill_it(tmp_path, split: str):
    data = make_dataset(str(tmp_path / "data"), splits=())
    with pytest.raises(StoreError, match=rf"no '{split}' rows; .*ingest\.{split}_fraction .*corpus\.{split}_tracks"):
        data.shards(split)


def test_damage_does_not_move_what_is_reported_to_another_split(latents: LatentDataset):
    damaged = latents.exclude_shards([shard.file for shard in latents.shards("test")])
    assert damaged.test_split == "test"
    with pytest.raises(StoreError, match="no 'test' rows"):
        damaged.shards("test")


def take(data: LatentDataset, count: int, *, cursor: Cursor | None = None, **options) -> list[Batch]:
    options = {"seed": 1, "global_batch_size": 6, **options}
    return list(islice(stream_batches(data, cursor=cursor or Cursor(), **options), count))


def ids(batches: list[Batch]) -> list[list[float]]:
    """Identify rows by their tempo, which numbers them."""
    return [b.cond.tempo_bpm.tolist() for b in batches]


def test_an_epoch_holds_every_row_once(latents: LatentDataset):
    seen = sum(ids(take(latents, 5)), [])
    assert len(seen) == len(set(seen)) == 30


def test_rows_stay_together_with_their_conditions(latents: LatentDataset):
    whole = {float(t): i for i, t in enumerate(read_all(latents).tempo_bpm)}
    raw, info = read_all(latents), latents.info["latents"]
    mean, std = np.array(info["mean"])[:, None], np.array(info["std"])[:, None]
    for batch in take(latents, 5):
        for x0, tempo, key in zip(batch.x0, batch.cond.tempo_bpm, batch.cond.key):
            row = whole[float(tempo)]
            np.testing.assert_allclose(x0, (raw.latents[row] - mean) / std, atol=1e-3)
            assert int(key) == raw.key[row]


def read_all(data: LatentDataset):
    return FullRows.concatenate(list(read_with_threads(data.uri, data.shards("train"), FullRows)))


def test_latents_are_normalised_to_unit_variance(latents: LatentDataset):
    x = torch.cat([b.x0 for b in take(latents, 5)])
    assert float(x.mean()) == pytest.approx(0, abs=1e-3)
    assert float(x.std()) == pytest.approx(1, abs=1e-2)


def test_order_depends_on_seed_and_epoch(latents: LatentDataset):
    first, second = ids(take(latents, 10))[:5], ids(take(latents, 10))[5:]
    assert sorted(sum(first, [])) == sorted(sum(second, []))
    assert first != second
    assert first == ids(take(latents, 5))
    assert first != ids(take(latents, 5, seed=2))


MANY = (10, 7, 13, 9, 12, 8, 11, 5, 10, 14, 6, 9, 3, 8, 10, 12)  # 147 rows: several lanes and windows


@pytest.fixture(params=["kept", "windows"])
def many(tmp_path, request, monkeypatch) -> LatentDataset:
    """A data set with many shards, kept in memory or read window by window."""
    if request.param == "windows":
        monkeypatch.setattr(epoch_plan, "WINDOW_ROWS", 40)
    return make_dataset(str(tmp_path / "data"), shard_rows=MANY)


def test_every_row_of_an_epoch_comes_once(many: LatentDataset):
    seen = sum(ids(take(many, 24)), [])  # 24 batches of 6
    assert len(seen) == len(set(seen)) == 144


def test_resume_replays_exactly_the_next_row(many: LatentDataset):
    whole = take(many, 30, crop_frames=5, caption_dropout=0.4)
    for done in (1, 2, 7, 12, 23, 24, 25, 29):
        resumed = take(many, 30 - done, cursor=whole[done - 1].cursor, crop_frames=5, caption_dropout=0.4)
        for ours, theirs in zip(resumed, whole[done:], strict=True):
            assert torch.equal(ours.x0, theirs.x0), f"after batch {done}"
            assert torch.equal(ours.cond.keep, theirs.cond.keep)
            assert ours.cursor == theirs.cursor


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_workers_share_each_global_batch(many: LatentDataset, world_size: int):
    alone = take(many, 30, caption_dropout=0.4)
    shares = [take(many, 30, rank=r, world_size=world_size, caption_dropout=0.4) for r in range(world_size)]
    for whole, *parts in zip(alone, *shares):
        assert torch.equal(whole.x0, torch.cat([p.x0 for p in parts]))
        assert torch.equal(whole.cond.keep, torch.cat([p.cond.keep for p in parts]))
        assert all(len(p.x0) == 6 // world_size for p in parts)


def test_another_number_of_workers_resumes_without_losing_or_repeating_a_row(many: LatentDataset):
    """Three workers stop in the middle of an epoch, two resume, then one: together they see what one alone sees."""
    cursor, seen = Cursor(), list[list[float]]()
    for world_size, count in ((3, 9), (2, 8), (1, 7)):
        parts = [take(many, count, cursor=cursor, rank=r, world_size=world_size) for r in range(world_size)]
        seen += [list(chain(*rows)) for rows in zip(*map(ids, parts))]
        cursor = parts[0][-1].cursor
    assert seen == ids(take(many, 24))
    assert cursor == Cursor(1, 0)


def test_a_batch_that_workers_cannot_share_is_refused(many: LatentDataset):
    with pytest.raises(ValueError, match=r"global_batch_size=6 .*4"):
        take(many, 1, world_size=4)


def test_an_incomplete_last_batch_is_left_out_and_the_epoch_ends(latents: LatentDataset):
    batches = take(latents, 4, global_batch_size=8)
    assert [b.cursor for b in batches] == [Cursor(0, 8), Cursor(0, 16), Cursor(1, 0), Cursor(1, 8)]


def make_recording_reader(read: list[str]):
    """Make a reader that records the requested shards."""

    def reader(uri, shards, kind, cache=None):
        def record_requests():
            for shard in shards:
                read.append(shard.file)
                yield shard

        yield from read_with_threads(uri, record_requests(), kind)

    return reader


def test_windows_before_the_cursor_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(epoch_plan, "WINDOW_ROWS", 40)
    shards = make_dataset(str(tmp_path / "data"), shard_rows=MANY).shards("train")
    plan = EpochPlan.from_shard_rows(MANY, seed=1, epoch=0, global_batch_size=6)

    def count(first_batch: int) -> int:
        read = list[str]()
        epoch = EpochRead(0, plan, plan.worker_slices(rank=0, world_size=1), first_batch)
        assert (
            len(
                list(
                    EpochReader(str(tmp_path / "data"), shards, make_recording_reader(read)).iter_batches(iter([epoch]))
                )
            )
            == 24 - first_batch
        )
        return len(read)

    assert count(18) <= count(0) / 4 + 3  # three lanes, whose windows can start earlier


def test_the_reader_prefetches_no_more_than_a_window(tmp_path, monkeypatch):
    monkeypatch.setattr(epoch_plan, "WINDOW_ROWS", 40)
    monkeypatch.setattr(shard_reader, "PREFETCH_SHARDS", 1)
    many = make_dataset(str(tmp_path / "data"), shard_rows=MANY)
    read = list[str]()
    batches = stream_batches(many, seed=1, cursor=Cursor(), global_batch_size=6, reader=make_recording_reader(read))
    next(batches)
    assert len(read) < len(MANY) / 2
    batches.close()


def test_the_next_epoch_is_read_before_one_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(epoch_plan, "WINDOW_ROWS", 40)
    shards = make_dataset(str(tmp_path / "data"), shard_rows=MANY).shards("train")
    plans = [EpochPlan.from_shard_rows(MANY, seed=1, epoch=epoch, global_batch_size=6) for epoch in (0, 1)]
    readings = [EpochRead(e, plan, plan.worker_slices(rank=0, world_size=1), 0) for e, plan in enumerate(plans)]
    read = list[str]()
    needed = len(list(shards_to_read(readings[0].windows)))
    for reading_, number, *_ in EpochReader(str(tmp_path / "data"), shards, make_recording_reader(read)).iter_batches(
        iter(readings)
    ):
        if (reading_.epoch, number) == (0, 23):
            assert len(read) > needed
            return


def test_crops_are_parts_of_their_rows_and_differ_by_epoch(many: LatentDataset):
    whole = {tempo: x0 for b in take(many, 24) for tempo, x0 in zip(b.cond.tempo_bpm.tolist(), b.x0)}
    offsets: dict[float, list[int]] = {}
    for batch in take(many, 72, crop_frames=5):
        for tempo, crop in zip(batch.cond.tempo_bpm.tolist(), batch.x0):
            fits = [o for o in range(4) if tempo in whole and torch.equal(whole[tempo][:, o : o + 5], crop)]
            offsets.setdefault(tempo, []).extend(fits)
    drawn = [o for tempo in whole for o in offsets[tempo]]
    assert len(drawn) > 400  # three epochs
    assert np.bincount(drawn).min() > 0.7 * len(drawn) / 4
    assert sum(len(set(o)) > 1 for o in offsets.values()) > 0.8 * len(offsets)


def test_a_crop_longer_than_a_row_is_refused(latents: LatentDataset):
    with pytest.raises(StoreError, match=r"data\.crop_frames=9 .*8"):
        take(latents, 1, crop_frames=9)


def test_conditions_are_dropped_from_the_stated_fraction_and_from_other_rows_each_epoch(many: LatentDataset):
    batches = take(many, 24 * 20, caption_dropout=0.25)
    kept = torch.cat([b.cond.keep for b in batches]).float()
    assert float(kept.mean()) == pytest.approx(0.75, abs=4 * (0.25 * 0.75 / len(kept)) ** 0.5)
    conditioned = {b.cond.tempo_bpm[i].item() for b in batches for i in range(6) if b.cond.keep[i]}
    assert len(conditioned) == 147


def test_tempo_and_key_are_dropped_each_on_its_own_from_the_stated_fraction(many: LatentDataset):
    batches = take(many, 24 * 20, attribute_dropout=0.25)
    tempo, key = (torch.cat([getattr(b.cond, name) for b in batches]) for name in ("tempo_bpm", "key"))
    dropped = torch.stack([tempo.isnan(), key == UNKNOWN_KEY]).double()
    tolerance = 4 * (0.25 * 0.75 / dropped.shape[1]) ** 0.5
    torch.testing.assert_close(dropped.mean(dim=1), torch.full((2,), 0.25).double(), atol=tolerance, rtol=0)
    assert float(dropped.prod(dim=0).mean()) == pytest.approx(0.25**2, abs=tolerance)
    texts = [take(many, 24, attribute_dropout=share) for share in (0.0, 0.25)]
    assert all(torch.equal(a.cond.pooled, b.cond.pooled) for a, b in zip(*texts))


def test_latents_are_read_from_whole_shards_all_over_a_split(many: LatentDataset):
    some, everything = (torch.cat(list(many.iter_latents("train", at_least=n))) for n in (1, None))
    assert len(everything) == sum(shard.rows for shard in many.shards("train")) > len(some) >= 1
    mean, std = (torch.tensor(many.info["latents"][name])[:, None] for name in ("mean", "std"))
    batch = take(many, 1)[0].x0[0]
    assert ((everything - mean) / std - batch).abs().amax(dim=(1, 2)).min() < 1e-5


def test_a_row_of_which_nothing_is_known_is_unconditional():
    mute = rows(3, seed=0)
    nothing = {"text_mask": np.zeros((3, 3), dtype=bool), "key": np.array([24, 24, 0], dtype=np.int8)}
    mute = replace(mute, **nothing, tempo_bpm=np.array([np.nan, 100, np.nan], dtype=np.float32))
    assert make_conditioning(mute).keep.tolist() == [False, True, True]


def test_too_little_data_is_refused(latents: LatentDataset):
    with pytest.raises(StoreError, match=r"30 rows, .*global_batch_size=64"):
        take(latents, 1, global_batch_size=64)


def test_damaged_shard_is_named(latents: LatentDataset, tmp_path):
    shard = tmp_path / "data" / "shards" / "1.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"1\.parquet.*blake3"):
        take(latents, 1)
    shard.unlink()
    with pytest.raises(StoreError, match=r"1\.parquet"):
        take(latents, 1)


def test_data_set_without_manifest_does_not_exist(latents: LatentDataset, tmp_path):
    (tmp_path / "data" / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"manifest\.json"):
        open_dataset(latents.uri)


def test_without_damaged_shards_the_stream_continues_and_counts_less(latents: LatentDataset, tmp_path):
    (tmp_path / "data/shards/1.parquet").write_bytes(b"nothing")
    found = find_damaged_shards(latents.uri, latents.shards("train"), with_ray=False)
    assert list(found) == ["shards/1.parquet"]
    assert "shards/1.parquet" in found["shards/1.parquet"]
    assert "blake3" in found["shards/1.parquet"]
    seen = sum(ids(take(latents.exclude_shards(found), 3)), [])
    assert len(seen) == 18
    assert not any(1000 <= tempo < 2000 for tempo in seen)  # shard 1


def test_shards_of_a_data_set_without_blake3_are_verified_by_sha256(latents: LatentDataset, tmp_path):
    first = [replace(shard, blake3="") for shard in latents.shards("train")]
    new, old = (
        FullRows.concatenate(list(read_with_threads(latents.uri, shards, FullRows)))
        for shards in (latents.shards("train"), first)
    )
    assert (new.latents == old.latents).all()
    (tmp_path / "data/shards/1.parquet").write_bytes(b"nothing")
    with pytest.raises(StoreError, match=r"1\.parquet.*sha256"):
        list(read_with_threads(latents.uri, first, FullRows))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda b: to_parquet(rows(9, 1)), "9 rows.* 7"),
        (lambda b: b[:-1], "schema"),
        (lambda b: without_column(b, "latents"), "latents"),
    ],
)
def test_a_shard_of_another_schema_is_named_though_its_hash_is_right(latents, tmp_path, content, message: str):
    path = tmp_path / "data/shards/1.parquet"
    path.write_bytes(content(path.read_bytes()))
    shard = replace(latents.shards("train")[1], blake3=blake3(path.read_bytes()).hexdigest())
    with pytest.raises(StoreError, match=rf"1\.parquet.*{message}"):
        list(read_with_threads(latents.uri, [shard], FullRows))


def without_column(content: bytes, name: str) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(content)).drop_columns([name]), stream)
    return stream.getvalue()


# over 10 s: starts the Ray session where it is the first to need it, and five epochs of Ray Data
@pytest.mark.ray
@pytest.mark.services
def test_ray_reads_the_same_rows_from_s3(shared_ray, many: LatentDataset, tmp_path):
    remote = make_dataset(f"s3://latents/{tmp_path.name}", shard_rows=MANY)
    local, remote_batches = take(many, 30), take(remote, 30, reader=read_with_ray)
    for a, b in zip(local, remote_batches, strict=True):
        assert torch.equal(a.x0, b.x0)
        assert torch.equal(a.cond.tokens, b.cond.tokens)
        assert a.cursor == b.cursor


@pytest.mark.ray
@pytest.mark.services
def test_ray_names_damaged_and_missing_shards(shared_ray, latents: LatentDataset, tmp_path):
    (tmp_path / "data/shards/1.parquet").write_bytes(b"nothing")
    (tmp_path / "data/shards/2.parquet").unlink()
    with pytest.raises(StoreError, match=r"1\.parquet.*blake3"):
        list(read_with_ray(latents.uri, latents.shards("train")[:2], FullRows))
    with pytest.raises(StoreError, match=r"2\.parquet"):
        list(read_with_ray(latents.uri, latents.shards("train")[2:], FullRows))
    found = find_damaged_shards(latents.uri, latents.shards("train"), with_ray=True)
    assert sorted(found) == ["shards/1.parquet", "shards/2.parquet"]


@pytest.mark.ray
@pytest.mark.services
@pytest.mark.parametrize(("plan", "task"), [(3, 1), (1024, 5000), (1024, 2**24)])
def test_shards_come_one_by_one_however_they_are_read_together(
    shared_ray, many: LatentDataset, monkeypatch, plan, task
):
    monkeypatch.setattr(shard_reader, "SHARDS_PER_EXECUTION", plan)
    monkeypatch.setattr(shard_reader, "TASK_BYTES", task)
    shards = many.shards("train")[:8]
    for ours, theirs in zip(
        read_with_ray(many.uri, shards, FullRows), read_with_threads(many.uri, shards, FullRows), strict=True
    ):
        assert np.array_equal(ours.latents, theirs.latents)
