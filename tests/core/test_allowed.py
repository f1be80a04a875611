"""Hostile artifacts: every one is refused, with a sentence of its own; and what the stages make is let through."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from safetensors.numpy import save

from presto_core.artifacts.manifest_schema import check_artifact, content_hash
from presto_core.artifacts.validate import (
    UnsafeArtifactError,
    check_content,
    check_name,
    check_names,
)

ID, HASH = "0" * 16, "a" * 64


def check_refused(name: str, content: bytes, message: str) -> None:
    with pytest.raises(UnsafeArtifactError, match=message) as caught:
        check_content(name, io.BytesIO(content), len(content))
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


# --- names

NAMES = {
    "leads up": ("../weights.safetensors", "leads out of the artifact"),
    "leads up from inside": ("audio/../../x.wav", "leads out of the artifact"),
    "leads up on Windows": ("..\\x.json", "leads out of the artifact"),
    "absolute": ("/etc/x.json", "is absolute"),
    "absolute on Windows": ("C:/x.json", "is absolute"),
    "a share": ("\\\\host\\x.json", "is absolute"),
    "hidden": (".bashrc.json", "hidden"),
    "a hidden folder": (".ssh/x.json", "hidden"),
    "an empty part": ("audio//x.wav", "empty"),
    "a dot part": ("./x.wav", "empty, hidden"),
    "a null": ("x\0.json", "of other characters than A-Z"),
    "a line break": ("x\n.json", "of other characters than A-Z"),
    "an escape": ("x\x1b[2J.json", "of other characters than A-Z"),
    "right to left": ("x\u202egnp.json", "of other characters than A-Z"),
    "a look-alike": ("wеights.safetensors", "of other characters than A-Z"),
    "a device": ("con.json", "is a device"),
    "a device below": ("audio/NUL.wav", "is a device"),
    "ends in a dot": ("audio./x.wav", "ends in a dot"),
    "too long": ("a" * 300 + ".json", "longer than"),
    "no text": (7, "is no text"),
    "empty": ("", "is no text"),
    "a pickle": ("state.pkl", "of no known type"),
    "a checkpoint": ("model.pt", "of no known type"),
    "NumPy": ("x.npy", "of no known type"),
    "a program": ("setup.py", "of no known type"),
    "a library": ("hook.so", "of no known type"),
    "an archive": ("x.tar.gz", "of no known type"),
    "no ending": ("weights", "of no known type"),
    "two endings": ("weights.safetensors.pkl", "of no known type"),
    "a script": ("x.js", "of no known type"),
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
        (["a.json", "A.json"], "are one file on some systems"),
        (["a.json", "a.json/b.json"], "which is a file"),
        (["manifest.json"], "one file on some systems"),
        (["Manifest.json"], "one file on some systems"),
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


def svg(inside: str, head: str = "") -> bytes:
    return f'{head}<svg xmlns="http://www.w3.org/2000/svg">{inside}</svg>'.encode()


def page(inside: str) -> bytes:
    return f"<!doctype html><html><body>{inside}</body></html>".encode()


PICKLED = pickle.dumps(HostilePickle())
PARQUET = parquet()
CONTENTS: dict[str, tuple[str, bytes, str]] = {
    "pickle as safetensors": ("w.safetensors", PICKLED, "a pickle, an archive or a program"),
    "pickle as Parquet": ("s.parquet", PICKLED, "a pickle, an archive or a program"),
    "pickle as JSON": ("m.json", PICKLED, "a pickle, an archive or a program"),
    "pickle as YAML": ("c.yaml", PICKLED, "a pickle, an archive or a program"),
    "pickle of protocol 0 as JSON": ("m.json", pickle.dumps({"a": 1}, protocol=0), "is no JSON"),
    "pickle as WAV": ("a.wav", PICKLED, "is no WAV file"),
    "pickle as PNG": ("p.png", PICKLED, "is no PNG file"),
    "pickle as SVG": ("p.svg", PICKLED, "no UTF-8|well-formed"),
    "pickle as HTML": ("p.html", PICKLED, "no UTF-8|no HTML"),
    "torch file as safetensors": ("w.safetensors", zip_pickle(PICKLED), "a pickle, an archive or a program"),
    "program as Parquet": ("s.parquet", b"\x7fELF" + b"\0" * 50, "a pickle, an archive or a program"),
    "gzip as JSON lines": ("t.jsonl", b"\x1f\x8b\x08" + b"\0" * 20, "a pickle, an archive or a program"),
    "safetensors too short": ("w.safetensors", b"abc", "too few"),
    "safetensors header oversized": ("w.safetensors", tensors(b"{}", length=2**62), "header claims"),
    "safetensors header beyond the file": ("w.safetensors", tensors(b"{}", length=100), "header claims"),
    "safetensors header no JSON": ("w.safetensors", tensors(b"{x}"), "is no JSON"),
    "safetensors header a list": ("w.safetensors", tensors([]), "no JSON object"),
    "safetensors header deep": ("w.safetensors", tensors(b"[" * 200_000), "is no JSON"),
    "safetensors key twice": ("w.safetensors", tensors(b'{"x":{},"x":{}}'), "a key twice"),
    "safetensors unknown type": ("w.safetensors", tensors(tensor_header("OBJ"), b"\0" * 4), "not described by known"),
    "safetensors no offsets": ("w.safetensors", tensors({"x": {"dtype": "F32", "shape": [1]}}), "not described"),
    "safetensors negative shape": ("w.safetensors", tensors(tensor_header(shape=(-1,)), b"\0" * 4), "are no sizes"),
    "safetensors huge shape": (
        "w.safetensors",
        tensors(tensor_header(shape=(2**62, 2**62)), b"\0" * 4),
        "does not take",
    ),
    "safetensors fractional shape": ("w.safetensors", tensors(tensor_header(shape=(1.5,)), b"\0" * 4), "are no sizes"),
    "safetensors beyond": (
        "w.safetensors",
        tensors(tensor_header(shape=(100,), offsets=(0, 400)), b"\0" * 4),
        "end at byte",
    ),
    "safetensors overlap": (
        "w.safetensors",
        tensors(tensor_header() | {"y": tensor_header()["x"]}, b"\0" * 4),
        "starts at byte 0 where 4 bytes are taken",
    ),
    "safetensors gap": ("w.safetensors", tensors(tensor_header(offsets=(4, 8)), b"\0" * 8), "starts at byte 4"),
    "safetensors tail": ("w.safetensors", tensors(tensor_header(), b"\0" * 4 + PICKLED), "end at byte"),
    "safetensors metadata": (
        "w.safetensors",
        tensors(tensor_header() | {"__metadata__": {"a": {}}}, b"\0" * 4),
        "__metadata__",
    ),
    "Parquet of nothing": ("s.parquet", b"PAR1PAR1", "no Parquet"),
    "Parquet cut": ("s.parquet", PARQUET[:-20], "was cut"),
    "Parquet footer oversized": ("s.parquet", PARQUET[:-8] + struct.pack("<I", 2**31) + b"PAR1", "footer claims"),
    "Parquet noise": ("s.parquet", b"PAR1" + b"\xff" * 60 + struct.pack("<I", 60) + b"PAR1", "cannot be read"),
    "JSON cut": ("m.json", b'{"a": 1', "is no JSON"),
    "JSON deep": ("m.json", b"[" * 200_000, "is no JSON"),
    "JSON not UTF-8": ("m.json", b'"\xff\xfe"', "is no JSON"),
    "JSON key twice": ("m.json", b'{"a": 1, "a": 2}', "a key twice"),
    "JSON line cut": ("t.jsonl", b'{"a": 1}\n{"a"', "line 2 is no JSON"),
    "JSON line wrong": ("t.jsonl", b'{"a": 1}\nnot\n', "line 2 is no JSON"),
    "YAML object": ("c.yaml", b"a: !!python/object/apply:os.system ['x']", "YAML tag"),
    "YAML module": ("c.yaml", b"a: !!python/name:os.system", "YAML tag"),
    "YAML bomb": ("c.yaml", b"a: &a [x]\nb: [*a, *a]", "YAML aliases"),
    "YAML broken": ("c.yaml", b"a: [", "is no YAML"),
    "YAML deep": ("c.yaml", b"[" * 100_000, "nested more than"),
    "WAV size wrong": ("a.wav", wav(riff=10), "another size"),
    "WAV tail": ("a.wav", wav() + PICKLED, "another size"),
    "WAV chunk beyond": ("a.wav", wav(data=1000), "beyond the file"),
    "WAV of no channels": ("a.wav", wav(channels=0), "is no music"),
    "WAV compressed": ("a.wav", wav(code=85), "is no music"),
    "WAV without samples": ("a.wav", b"RIFF" + struct.pack("<I", 4) + b"WAVE", "lacks a format"),
    "PNG tail": ("p.png", png(tail=PICKLED), "follow the end"),
    "PNG huge": ("p.png", png(width=2**31 - 1), "wider or higher"),
    "PNG of no size": ("p.png", png(height=0), "no size"),
    "PNG check sum": ("p.png", PNG_HEAD + chunk(b"IHDR", b"\0" * 13, crc=1), "check sum"),
    "PNG header missing": ("p.png", PNG_HEAD + chunk(b"IDAT", b""), "not where it belongs"),
    "PNG cut": ("p.png", png()[:-6], "its end is missing"),
    "PNG chunk beyond": ("p.png", PNG_HEAD + struct.pack(">I", 2**31) + b"IHDR", "beyond the file"),
    "SVG script": ("p.svg", svg("<script>alert(1)</script>"), "<script>"),
    "SVG script of a prefix": ("p.svg", svg('<s:script xmlns:s="http://www.w3.org/2000/svg"/>'), "<script>"),
    "SVG handler": ("p.svg", svg('<rect onload="x()"/>'), "a handler"),
    "SVG link to a script": ("p.svg", svg('<a href="java\tscript:x()"/>'), "a script"),
    "SVG other place": ("p.svg", svg('<image href="https://example.org/x.png"/>'), "another place"),
    "SVG other host": ("p.svg", svg('<image href="//example.org/x"/>'), "another place"),
    "SVG file": ("p.svg", svg('<use href="file:///etc/passwd"/>'), "another place"),
    "SVG foreign object": ("p.svg", svg("<foreignObject/>"), "foreignObject"),
    "SVG animation": ("p.svg", svg('<a><set attributeName="href" to="x"/></a>'), "<set>"),
    "SVG entities": ("p.svg", svg("&a;", '<!DOCTYPE svg [<!ENTITY a "b">]>'), "declares entities"),
    "SVG outer entity": ("p.svg", svg("&a;", '<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>'), "entities"),
    "SVG style": ("p.svg", svg("<style>@import 'https://example.org'</style>"), "its style loads"),
    "SVG style sheet": ("p.svg", svg("", '<?xml-stylesheet href="x"?>'), "processing instruction"),
    "SVG broken": ("p.svg", b"<svg>", "well-formed"),
    "SVG of another root": ("p.svg", b"<html/>", "not <svg>"),
    "HTML script": ("p.html", page("<script src=x></script>"), "<script>"),
    "HTML script in capitals": ("p.html", page("<ScRiPt>x</ScRiPt>"), "<script>"),
    "HTML handler": ("p.html", page("<img src=x onerror=alert(1)>"), "a handler"),
    "HTML frame": ("p.html", page("<iframe src=x></iframe>"), "<iframe>"),
    "HTML form": ("p.html", page("<form action=x>"), "<form>"),
    "HTML base": ("p.html", page("<base href=x>"), "<base>"),
    "HTML refresh": ("p.html", page('<meta http-equiv=refresh content="0;url=x">'), "http-equiv"),
    "HTML tracker": ("p.html", page("<img src=https://example.org/t.gif>"), "another place"),
    "HTML style": ("p.html", page("<style>a{background:url(https://x)}</style>"), "its style loads"),
    "HTML object": ("p.html", page("<object data=x></object>"), "<object>"),
    "HTML svg inside": ("p.html", page("<svg><set/></svg>"), "<svg>"),
    "HTML data link": ("p.html", page('<a href="data:text/html,x">x</a>'), "a script or data"),
    "HTML not": ("p.html", b"hello", "no HTML"),
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
    "unknown kind": (manifest(kind="program"), "kind 'program' is none of"),
    "id leads up": (manifest(id="../../../../etc"), "is not 16 hexadecimal"),
    "id of another length": (manifest(id="ab"), "is not 16 hexadecimal"),
    "parent leads up": (manifest(parents={"teacher": "../x"}), "is no artifact's id"),
    "parent with quotes": (manifest(parents={"teacher": "' or 1=1 --"}), "is no artifact's id"),
    "parents a list": (manifest(parents=[]), "parents is a list"),
    "files a list": (manifest(files=["x"]), "files is a list"),
    "file leads up": (manifest(files=entry("../x.json")), "leads out of the artifact"),
    "file absolute": (manifest(files=entry("/x.json")), "is absolute"),
    "pickle listed": (manifest(files=entry("x.pkl")), "of no known type"),
    "no hash": (manifest(files=entry(sha256=None)), "is not 64 hexadecimal"),
    "short hash": (manifest(files=entry(sha256="ab")), "is not 64 hexadecimal"),
    "negative size": (manifest(files=entry(size=-1)), "is not between 0 and"),
    "huge size": (manifest(files=entry(size=2**60)), "is not between 0 and"),
    "size a text": (manifest(files=entry(size="1")), "is not between 0 and"),
    "size true": (manifest(files=entry(size=True)), "is not between 0 and"),
    "too much in all": (
        manifest(files={f"a{n}.json": {"sha256": HASH, "bytes": 2**36} for n in range(300)}),
        "more than",
    ),
    "shards a text": (manifest(dataset={"shards": "x"}), "no list of shards"),
    "shard leads up": (
        manifest(dataset={"shards": [{"file": "../s.parquet", "sha256": HASH, "bytes": 1}]}),
        "leads out",
    ),
    "shard is a file too": (
        manifest(files=entry("s.parquet"), dataset={"shards": [{"file": "S.parquet", "sha256": HASH, "bytes": 1}]}),
        "one file on some systems",
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_hostile_manifests_are_refused(case: str):
    content, message = MANIFESTS[case]
    with pytest.raises(UnsafeArtifactError, match=message):
        check_artifact(content)


def test_there_are_many_hostile_artifacts():
    assert len(NAMES) + len(CONTENTS) + len(MANIFESTS) >= 100


# --- what is let through


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
        ("family.svg", svg('<rect fill="url(#a)" style="fill: red"/><a href="#x"/>', '<?xml version="1.0"?>')),
        ("index.html", page("<img src=a.png><audio controls src='audio/x.wav'></audio><style>a{color:red}</style>")),
    ],
)
def test_harmless_files_are_let_through(name: str, content: bytes):
    check_name(name)
    check_content(name, io.BytesIO(content), len(content))
    check_content(name, pa.BufferReader(content), len(content))  # as storage opens files


def test_the_same_content_is_the_same_version_whenever_it_was_made():
    one, other = (manifest(created=when, made_with={"python": when}) for when in ("then", "now"))
    assert content_hash(one) == content_hash(other)
    for changed in (manifest(parents={"teacher": "1" * 16}), manifest(files=entry()), manifest(model={"depth": 3})):
        assert content_hash(changed) != content_hash(one)
