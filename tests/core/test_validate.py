"""Hostile artifacts are rejected with a message that names the problem; artifacts of the stages are accepted."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from presto_core.artifacts.manifest_schema import check_artifact, content_hash
from presto_core.artifacts.validate import UnsafeArtifactError, check_content, check_name, check_names

ID, HASH = "0" * 16, "a" * 64


def check_refused(name: str, content: bytes, message: str) -> None:
    with pytest.raises(UnsafeArtifactError, match=message) as caught:
        check_content(name, io.BytesIO(content), len(content))
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


# --- names

NAMES = {
    "leads up": ("../weights.safetensors", "outside"),
    "leads up from inside": ("audio/../../x.wav", "outside"),
    "leads up on Windows": ("..\\x.json", "outside"),
    "absolute": ("/etc/x.json", "is absolute"),
    "absolute on Windows": ("C:/x.json", "is absolute"),
    "a share": ("\\\\host\\x.json", "is absolute"),
    "hidden": (".bashrc.json", "hidden"),
    "a hidden folder": (".ssh/x.json", "hidden"),
    "an empty part": ("audio//x.wav", "empty"),
    "a dot part": ("./x.wav", "empty, hidden"),
    "a null": ("x\0.json", "A-Z"),
    "a line break": ("x\n.json", "A-Z"),
    "an escape": ("x\x1b[2J.json", "A-Z"),
    "right to left": ("x\u202egnp.json", "A-Z"),
    "a look-alike": ("wеights.safetensors", "A-Z"),
    "a device": ("con.json", "device"),
    "a device below": ("audio/NUL.wav", "device"),
    "ends in a dot": ("audio./x.wav", "trailing dot"),
    "too long": ("a" * 300 + ".json", "200 characters"),
    "no text": (7, "string"),
    "empty": ("", "string"),
    "a pickle": ("state.pkl", "unknown type"),
    "a checkpoint": ("model.pt", "unknown type"),
    "NumPy": ("x.npy", "unknown type"),
    "a program": ("setup.py", "unknown type"),
    "a library": ("hook.so", "unknown type"),
    "an archive": ("x.tar.gz", "unknown type"),
    "no ending": ("weights", "unknown type"),
    "two endings": ("weights.safetensors.pkl", "unknown type"),
    "a script": ("x.js", "unknown type"),
    "a page": ("index.html", "unknown type"),
    "a page in capitals": ("report.HTML", "unknown type"),
    "a page of XML": ("report.xhtml", "unknown type"),
    "a drawing": ("plots/family.svg", "unknown type"),
}


@pytest.mark.parametrize("case", NAMES)
def test_hostile_names_are_refused(case: str):
    name, message = NAMES[case]
    with pytest.raises(UnsafeArtifactError, match=message) as caught:
        check_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.json", "A.json"], "a.json.*A.json"),
        (["a.json", "a.json/b.json"], "a.json/b.json.*a.json"),
        (["manifest.json"], "manifest.json"),
        (["Manifest.json"], "Manifest.json"),
    ],
)
def test_names_that_clash_are_refused(names: list[str], message: str):
    with pytest.raises(UnsafeArtifactError, match=message):
        check_names(names)


# --- contents


class HostilePickle:
    def __reduce__(self) -> Any:
        return (print, ("planted",))


def zip_pickle(pickled: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return stream.getvalue()


def tensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor_header(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def png(width: int = 1, height: int = 1, tail: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG_HEAD + head + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"") + tail


def png_of_shallow_colours() -> bytes:
    """A PNG of one pixel with three channels of two bits, of which the format allows only 8 or 16."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 2, 2, 0, 0, 0))
    return PNG_HEAD + head + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def wav(
    code: int = 1, channels: int = 1, rate_hz: int = 44100, riff: int | None = None, data: int | None = None
) -> bytes:
    form = struct.pack("<HHIIHH", code, channels, rate_hz, rate_hz * 2, 2, 16)
    body = (
        b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", 4 if data is None else data)
        + b"\0" * 4
    )
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


def parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"x": [1, 2, 3]}), stream)
    return stream.getvalue()


PICKLED = pickle.dumps(HostilePickle())
PARQUET = parquet()
CONTENTS: dict[str, tuple[str, bytes, str]] = {
    "pickle as safetensors": ("w.safetensors", PICKLED, "pickle"),
    "pickle as Parquet": ("s.parquet", PICKLED, "pickle"),
    "pickle as JSON": ("m.json", PICKLED, "pickle"),
    "pickle as YAML": ("c.yaml", PICKLED, "pickle"),
    "pickle of protocol 0 as JSON": ("m.json", pickle.dumps({"a": 1}, protocol=0), "JSON"),
    "pickle as WAV": ("a.wav", PICKLED, "WAV"),
    "pickle as PNG": ("p.png", PICKLED, "PNG"),
    "torch file as safetensors": ("w.safetensors", zip_pickle(PICKLED), "pickle"),
    "program as Parquet": ("s.parquet", b"\x7fELF" + b"\0" * 50, "pickle"),
    "gzip as JSON lines": ("t.jsonl", b"\x1f\x8b\x08" + b"\0" * 20, "pickle"),
    "safetensors too short": ("w.safetensors", b"abc", "3 bytes"),
    "safetensors header oversized": ("w.safetensors", tensors(b"{}", length=2**62), str(2**62)),
    "safetensors header beyond the file": ("w.safetensors", tensors(b"{}", length=100), "100 bytes"),
    "safetensors header no JSON": ("w.safetensors", tensors(b"{x}"), "JSON"),
    "safetensors header a list": ("w.safetensors", tensors([]), "JSON object"),
    "safetensors header deep": ("w.safetensors", tensors(b"[" * 200_000), "JSON"),
    "safetensors key twice": ("w.safetensors", tensors(b'{"x":{},"x":{}}'), "duplicate keys"),
    "safetensors unknown type": ("w.safetensors", tensors(tensor_header("OBJ"), b"\0" * 4), "dtype"),
    "safetensors no offsets": ("w.safetensors", tensors({"x": {"dtype": "F32", "shape": [1]}}), "data_offsets"),
    "safetensors negative shape": ("w.safetensors", tensors(tensor_header(shape=(-1,)), b"\0" * 4), "'x'.*shape"),
    "safetensors huge shape": (
        "w.safetensors",
        tensors(tensor_header(shape=(2**62, 2**62)), b"\0" * 4),
        "'x'.*4 bytes",
    ),
    "safetensors fractional shape": ("w.safetensors", tensors(tensor_header(shape=(1.5,)), b"\0" * 4), "'x'.*shape"),
    "safetensors beyond": (
        "w.safetensors",
        tensors(tensor_header(shape=(100,), offsets=(0, 400)), b"\0" * 4),
        "end at byte [04]",
    ),
    "safetensors overlap": (
        "w.safetensors",
        tensors(tensor_header() | {"y": tensor_header()["x"]}, b"\0" * 4),
        "'y' starts at byte 0",
    ),
    "safetensors gap": ("w.safetensors", tensors(tensor_header(offsets=(4, 8)), b"\0" * 8), "'x' starts at byte 4"),
    "safetensors tail": ("w.safetensors", tensors(tensor_header(), b"\0" * 4 + PICKLED), "end at byte [04]"),
    "safetensors sizes that overflow": (
        "w.safetensors",
        tensors(tensor_header(shape=(2**62, 2**62, 0), offsets=(0, 0))),
        "safetensors cannot read",
    ),
    "safetensors metadata": (
        "w.safetensors",
        tensors(tensor_header() | {"__metadata__": {"a": {}}}, b"\0" * 4),
        "__metadata__",
    ),
    "Parquet of nothing": ("s.parquet", b"PAR1PAR1", "Parquet"),
    "Parquet cut": ("s.parquet", PARQUET[:-20], "footer"),
    "Parquet footer oversized": ("s.parquet", PARQUET[:-8] + struct.pack("<I", 2**31) + b"PAR1", str(2**31)),
    "Parquet noise": ("s.parquet", b"PAR1" + b"\xff" * 60 + struct.pack("<I", 60) + b"PAR1", "footer"),
    "JSON cut": ("m.json", b'{"a": 1', "JSON"),
    "JSON deep": ("m.json", b"[" * 200_000, "JSON"),
    "JSON not UTF-8": ("m.json", b'"\xff\xfe"', "JSON"),
    "JSON key twice": ("m.json", b'{"a": 1, "a": 2}', "duplicate keys"),
    "JSON line cut": ("t.jsonl", b'{"a": 1}\n{"a"', "line 2"),
    "JSON line wrong": ("t.jsonl", b'{"a": 1}\nnot\n', "line 2"),
    "YAML object": ("c.yaml", b"a: !!python/object/apply:os.system ['x']", "YAML tag"),
    "YAML module": ("c.yaml", b"a: !!python/name:os.system", "YAML tag"),
    "YAML bomb": ("c.yaml", b"a: &a [x]\nb: [*a, *a]", "aliases"),
    "YAML broken": ("c.yaml", b"a: [", "YAML"),
    "YAML deep": ("c.yaml", b"[" * 100_000, "60"),
    "WAV size wrong": ("a.wav", wav(riff=10), "RIFF"),
    "WAV tail": ("a.wav", wav() + PICKLED, "RIFF"),
    "WAV chunk beyond": ("a.wav", wav(data=1000), "chunk b'data'"),
    "WAV of no channels": ("a.wav", wav(channels=0), "0 channels"),
    "WAV compressed": ("a.wav", wav(code=85), "code 85"),
    "WAV without samples": ("a.wav", b"RIFF" + struct.pack("<I", 4) + b"WAVE", "fmt"),
    "PNG tail": ("p.png", png(tail=PICKLED), "bytes follow"),
    "PNG huge": ("p.png", png(width=2**31 - 1), "20000"),
    "PNG of no size": ("p.png", png(height=0), "20000"),
    "PNG check sum": ("p.png", PNG_HEAD + chunk(b"IHDR", b"\0" * 13, crc=1), "checksum.*IHDR"),
    "PNG header missing": ("p.png", PNG_HEAD + chunk(b"IDAT", b""), "header"),
    "PNG cut": ("p.png", png()[:-6], "end"),
    "PNG that Pillow refuses": ("p.png", png_of_shallow_colours(), "Pillow cannot read"),
    "PNG chunk beyond": ("p.png", PNG_HEAD + struct.pack(">I", 2**31) + b"IHDR", "chunk"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTENTS)
def test_hostile_contents_are_refused(case: str):
    check_refused(*CONTENTS[case])


# --- manifests


def manifest(**changes: Any) -> dict[str, Any]:
    files = {"w.safetensors": {"sha256": HASH, "bytes": 10}}
    return {"kind": "generator", "id": ID, "parents": {"teacher": ID}, "files": files} | changes


def entry(name: str = "a.json", sha256: Any = HASH, size: Any = 1) -> dict[str, Any]:
    return {name: {"sha256": sha256, "bytes": size}}


MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown kind": (manifest(kind="program"), "'program'"),
    "id leads up": (manifest(id="../../../../etc"), "16 hexadecimal"),
    "id of another length": (manifest(id="ab"), "16 hexadecimal"),
    "parent leads up": (manifest(parents={"teacher": "../x"}), "'../x'"),
    "parent with quotes": (manifest(parents={"teacher": "' or 1=1 --"}), "or 1=1"),
    "parents a list": (manifest(parents=[]), "parents.*list"),
    "files a list": (manifest(files=["x"]), "files.*list"),
    "file leads up": (manifest(files=entry("../x.json")), "outside"),
    "file absolute": (manifest(files=entry("/x.json")), "is absolute"),
    "pickle listed": (manifest(files=entry("x.pkl")), "unknown type"),
    "no hash": (manifest(files=entry(sha256=None)), "64 hexadecimal"),
    "short hash": (manifest(files=entry(sha256="ab")), "64 hexadecimal"),
    "negative size": (manifest(files=entry(size=-1)), "a.json.*bytes"),
    "huge size": (manifest(files=entry(size=2**60)), "a.json.*bytes"),
    "size a text": (manifest(files=entry(size="1")), "a.json.*bytes"),
    "size true": (manifest(files=entry(size=True)), "a.json.*bytes"),
    "too much in all": (
        manifest(files={f"a{n}.json": {"sha256": HASH, "bytes": 2**36} for n in range(300)}),
        str(300 * 2**36),
    ),
    "shards a text": (manifest(dataset={"shards": "x"}), "dataset.shards"),
    "shard leads up": (
        manifest(dataset={"shards": [{"file": "../s.parquet", "sha256": HASH, "bytes": 1}]}),
        "outside",
    ),
    "shard is a file too": (
        manifest(files=entry("s.parquet"), dataset={"shards": [{"file": "S.parquet", "sha256": HASH, "bytes": 1}]}),
        "s.parquet.*S.parquet",
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_hostile_manifests_are_refused(case: str):
    content, message = MANIFESTS[case]
    with pytest.raises(UnsafeArtifactError, match=message):
        check_artifact(content)


def test_there_are_many_hostile_artifacts():
    assert len(NAMES) + len(CONTENTS) + len(MANIFESTS) >= 100


# --- what is small in the file and large when decoded


def parquet_of(rows: int, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"x": np.zeros(rows)}), stream, **options)
    return stream.getvalue()


def png_of(width: int, height: int, data: bytes, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG_HEAD + head + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BOMB = zlib.compress(b"\0" * 50_000_000, 9)
BOMBS = {
    "Parquet": lambda: ("p.parquet", parquet_of(40_000_000, use_dictionary=False, compression="zstd"), "decoded"),
    "Parquet, repeated": lambda: ("p.parquet", parquet_of(40_000_000), "decoded"),
    "PNG of many pixels": lambda: ("p.png", png_of(19_000, 19_000, BOMB), "pixels|in all"),
    "PNG of more data than pixels": lambda: ("p.png", png_of(8, 8, BOMB), "gives more"),
    "PNG of less data than pixels": lambda: ("p.png", png_of(7000, 7000, zlib.compress(b"")), "header needs"),
    "PNG text": lambda: ("p.png", png_of(1, 1, zlib.compress(b"\0\0"), chunk(b"zTXt", b"a\0\0" + BOMB)), "gives more"),
    "PNG international text": lambda: (
        "p.png",
        png_of(1, 1, zlib.compress(b"\0\0"), chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)),
        "gives more",
    ),
    "PNG colour profile": lambda: (
        "p.png",
        png_of(1, 1, zlib.compress(b"\0\0"), chunk(b"iCCP", b"a\0\0" + BOMB)),
        "gives more",
    ),
    "WAV of ADPCM": lambda: ("p.wav", wav(code=0x11), "not allowed"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_content_that_grows_when_decoded_is_refused_before_it_does(case: str):
    name, content, message = BOMBS[case]()
    assert len(content) < 2_000_000
    tracemalloc.start()
    try:
        check_refused(name, content, message)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def start_files() -> dict[str, bytes]:
    return {
        "w.safetensors": save({"a": np.zeros((2, 3), np.float32)}),
        "p.parquet": parquet(),
        "j.json": b'{"a": [1, 2.5, null], "b": "x"}',
        "t.jsonl": b'{"a": 1}\n\n{"a": 2}\n',
        "c.yaml": b"a: 1\nb: [1, 2]\n",
        "s.wav": wav(),
        "i.png": png(),
    }


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_content_ends_in_one_class(data: st.DataObject):
    files = start_files()
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, max(len(content) - 1, 0)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "extreme"]))
        if kind == "cut":
            del content[position:]
        elif kind == "insert":
            content[position:position] = data.draw(st.binary(max_size=9))
        elif kind == "extreme":
            content[position : position + 4] = data.draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]))
        elif content:
            content[position] ^= data.draw(st.integers(1, 255))
    claimed = data.draw(st.sampled_from([len(content), len(content) + 7]))
    with suppress(UnsafeArtifactError):
        check_content(name, io.BytesIO(bytes(content)), claimed)


# --- accepted files


def sound_file() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(1001), 44100, format="WAV", subtype="PCM_16")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.safetensors", save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(0, np.float16)})),
        ("shards/0.parquet", PARQUET),
        ("report.json", b'{"a": [1, 2.5, null], "b": "x"}'),
        ("tracks.jsonl", b'{"a": 1}\n\n{"a": 2}\n'),
        ("empty.jsonl", b""),
        ("long.jsonl", b'{"a": "' + b"x" * 3_000_000 + b'"}\n{"a": "' + b"y" * 3_000_000 + b'"}'),
        ("config.yaml", b"a: 1\nb: [1, 2]\nc: {d: 'x'}\n"),
        ("config.yaml", b""),
        ("audio/LS-4-0.wav", sound_file()),
        ("audio/x.wav", wav()),
        ("quality.png", png()),
        ("large.png", png_of(3000, 1000, zlib.compress(b"\0" * 3001 * 1000))),
        ("noise.png", png_of(1200, 1000, zlib.compress(np.random.default_rng(0).bytes(1201 * 1000)))),
    ],
)
def test_harmless_files_are_accepted(name: str, content: bytes):
    check_name(name)
    check_content(name, io.BytesIO(content), len(content))
    check_content(name, pa.BufferReader(content), len(content))  # the stream type of storage


def test_creation_time_and_versions_do_not_affect_the_content_hash():
    one, other = (manifest(created=when, made_with={"python": when}) for when in ("then", "now"))
    assert content_hash(one) == content_hash(other)
    for changed in (manifest(parents={"teacher": "1" * 16}), manifest(files=entry()), manifest(model={"depth": 3})):
        assert content_hash(changed) != content_hash(one)
