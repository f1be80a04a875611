"""Check that an SVG or HTML file is passive: no scripts, no event handlers, no external references."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import BinaryIO
from xml.parsers import expat

from presto_core.artifacts.formats import UnsafeArtifactError

MAX_BYTES = 64 * 2**20
_ACTIVE_TAGS = {
    "script",
    "iframe",
    "frame",
    "object",
    "embed",
    "applet",
    "base",
    "form",
    "link",
    "foreignobject",
    "handler",
}
_ACTIVE_TAGS |= {"set", "animate", "animatetransform", "animatemotion", "portal", "template", "input", "button"}
_URL_ATTRIBUTES = {
    "href",
    "src",
    "srcset",
    "action",
    "formaction",
    "data",
    "poster",
    "background",
    "cite",
    "ping",
    "manifest",
}
_SVG_NAMESPACES = ("http://www.w3.org/", "http://purl.org/dc/", "http://creativecommons.org/")


def check_svg(stream: BinaryIO, size: int) -> None:
    """Check that a file is well-formed, passive SVG without entities."""
    text = _read_text(stream, size)
    parser, depth = expat.ParserCreate(), 0

    def reject_entities(name: str, system: str | None, public: str | None, subset: int) -> None:
        if subset:
            raise UnsafeArtifactError("it declares entities, which can expand without limit or read files")

    def check_element(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        if depth == 0 and _local_name(name) != "svg":
            raise UnsafeArtifactError(f"its root is <{name[:40]}>, not <svg>")
        depth += 1
        _check_passive(_local_name(name), list(attributes.items()))

    def reject_instruction(target: str, data: str) -> None:
        raise UnsafeArtifactError(f"it has a processing instruction <?{target[:40]}?>")

    parser.StartDoctypeDeclHandler, parser.StartElementHandler = reject_entities, check_element
    parser.ProcessingInstructionHandler = reject_instruction
    parser.CharacterDataHandler = _check_plain_style
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        raise UnsafeArtifactError(f"it is not well-formed XML: {error}") from None


def check_html(stream: BinaryIO, size: int) -> None:
    """Check that a file is a passive HTML page that refers only to files beside it."""
    text = _read_text(stream, size)
    if not text.lstrip().lower().startswith(("<!doctype html", "<html")):
        raise UnsafeArtifactError("it is not an HTML page")
    page = _Page()
    page.feed(text)
    page.close()


class _Page(HTMLParser):
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "svg" or tag == "math":
            raise UnsafeArtifactError(f"it has an inline <{tag}>; keep it in a separate file")
        if tag == "meta" and any(key == "http-equiv" for key, _ in attrs):
            raise UnsafeArtifactError("it has <meta http-equiv>, which can redirect")
        _check_passive(tag, [(key, value or "") for key, value in attrs])

    def handle_data(self, data: str) -> None:
        _check_plain_style(data)

    def handle_pi(self, data: str) -> None:
        raise UnsafeArtifactError(f"it has a processing instruction <?{data[:40]}>")


def _read_text(stream: BinaryIO, size: int) -> str:
    if size > MAX_BYTES:
        raise UnsafeArtifactError(f"its size of {size} bytes exceeds the {MAX_BYTES} allowed for its type")
    try:
        text = stream.read().decode()
    except UnicodeDecodeError:
        raise UnsafeArtifactError("it is not UTF-8 text") from None
    if "\x00" in text:
        raise UnsafeArtifactError("it contains null characters")
    return text


def _check_passive(tag: str, attributes: list[tuple[str, str]]) -> None:
    if tag.lower() in _ACTIVE_TAGS:
        raise UnsafeArtifactError(f"it has <{tag[:40]}>, which is not passive content")
    for key, value in attributes:
        name = _local_name(key).lower()
        if name.startswith("on"):
            raise UnsafeArtifactError(f"it has an event handler {key[:40]!r}, which runs a script")
        plain = re.sub(r"[\s\x00-\x20]", "", value).lower()
        if re.search(r"(javascript|vbscript|data):", plain) and not _is_picture(plain):
            raise UnsafeArtifactError(f"its {key[:40]!r} contains a script or data")
        is_external = re.match(r"([a-z][a-z0-9+.-]*:|//|\\|/)", plain)
        if name in _URL_ATTRIBUTES and is_external and not _is_picture(plain) and not _is_namespace_url(key, plain):
            raise UnsafeArtifactError(f"its {key[:40]!r} refers to an external resource: {value[:80]!r}")
        if name == "style":
            _check_plain_style(value)


def _check_plain_style(text: str) -> None:
    lowered = re.sub(r"/\*.*?\*/|\s", "", text.lower(), flags=re.DOTALL)
    if "@import" in lowered or "expression(" in lowered or re.search(r"url\(['\"]?(?!#)", lowered):
        raise UnsafeArtifactError("its style loads an external resource")


def _is_picture(value: str) -> bool:
    """Return whether a value is an inline image, as matplotlib writes into SVG."""
    return re.match(r"data:image/(png|jpeg);base64,[a-z0-9+/=]*$", value) is not None


def _is_namespace_url(key: str, value: str) -> bool:
    """Return whether a value names an RDF licence or type by URL, which is never loaded."""
    return key.lower().startswith(("rdf:", "xmlns", "cc:")) and value.startswith(_SVG_NAMESPACES)


def _local_name(name: str) -> str:
    return name.rpartition(":")[2]
