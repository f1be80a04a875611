"""A shard's columns are read back unchanged, and shared values are stored and held once."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.parquet_tensors import read_array, read_column
from pipelines.data.shards import FullRows, ShardRows, to_parquet
from tests.support.synthetic_dataset import rows


def make_track_rows(counts: list[int], *, seed: int = 0) -> FullRows:
    """Make rows of several tracks; the rows of one track share a caption."""
    track = np.repeat(np.arange(len(counts)), counts)
    made = rows(len(track), seed)
    names = ("text_pooled", "text_tokens", "text_mask", "caption")
    return replace(made, **{name: getattr(made, name)[track] for name in names})


def read(content: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(content))


@pytest.mark.parametrize("counts", [[1], [5], [1, 1, 1], [4, 1, 3]])
def test_every_column_comes_back_bit_by_bit(counts: list[int]):
    made = make_track_rows(counts)
    back = FullRows.from_table(read(to_parquet(made)))
    for name in FullRows.columns():
        ours, theirs = getattr(made, name), getattr(back, name)
        assert theirs.dtype == ours.dtype, name
        assert np.array_equal(ours, theirs), name


def test_what_rows_on_end_share_is_held_once():
    held = ShardRows.from_table(read(to_parquet(make_track_rows([4, 1, 3]))))
    assert len(held.text_tokens.values) == len(held.text_pooled.values) == 3
    assert held.text_tokens.index.tolist() == [0, 0, 0, 0, 1, 2, 2, 2]
    assert held.latents.index is None


def test_shards_read_together_keep_their_rows_apart():
    parts = [make_track_rows([2, 3]), make_track_rows([1, 4], seed=1)]
    table = pa.concat_tables([read(to_parquet(part)) for part in parts])
    whole = FullRows.concatenate(parts)
    for start, stop in ((0, 10), (1, 4), (3, 8), (5, 10), (9, 10)):
        cut = table.slice(start, stop - start)
        for name in FullRows.columns():
            assert np.array_equal(read_array(cut, name), getattr(whole, name)[start:stop]), name
        held = ShardRows.from_table(cut).copy()
        assert np.array_equal(
            np.stack([held.text_tokens[i] for i in range(stop - start)]), whole.text_tokens[start:stop]
        )


def test_captions_of_many_bytes_stay_a_dictionary():
    """Parquet's own limit is 1 MiB, after which values would be stored row by row."""
    made = make_track_rows([2] * 40)
    tokens = np.random.default_rng(0).standard_normal((40, 64, 512)).astype(np.float16)[np.repeat(np.arange(40), 2)]
    content = to_parquet(replace(made, text_tokens=tokens))
    assert len(content) < 0.6 * tokens.nbytes
    stored = read_column(read(content), "text_tokens")
    assert len(stored.values) == 40
    assert np.array_equal(stored.to_array(), tokens)


def test_a_caption_that_comes_again_is_stored_once():
    """Twice in a dictionary, it would reserve space in the file that Arrow fills with uninitialized memory."""
    masks = np.array([[True, False, False], [True, True, False]])
    once, again = (to_parquet(replace(rows(3, 0), text_mask=masks[order])) for order in ([0, 1, 1], [0, 1, 0]))
    assert read_column(read(again), "text_mask").index.tolist() == [0, 1, 0]
    assert _bytes_of(again, "text_mask") == _bytes_of(once, "text_mask")


def _bytes_of(content: bytes, name: str) -> int:
    group = pq.read_metadata(io.BytesIO(content)).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    return columns[name].total_uncompressed_size
