"""A request that is refused: status, and the body {"error": {"what", "value", "fix"}} of every error."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import ValidationError

SHOWN_LETTERS = 120


@dataclass(frozen=True)
class Refusal:
    """Why a request got no clip; plain data, so that it travels between processes.

    Attributes:
        what: what is wrong.
        value: the value that is, as text; empty if there is none.
        fix: what to do.
    """

    status: int
    what: str
    fix: str
    value: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, dict[str, str]]:
        return {"error": {"what": self.what, "value": self.value, "fix": self.fix}}


class RefusedError(Exception):
    """Carries a refusal to the one place that answers with it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.what)
        self.refusal = refusal


def refuse(
    status: int, what: str, fix: str, *, value: object = "", headers: dict[str, str] | None = None
) -> RefusedError:
    return RefusedError(Refusal(status, what, fix, shorten_value(value), headers or {}))


def shorten_value(value: object) -> str:
    """Return a value as one printable line of limited length."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(letter if letter.isprintable() else "�" for letter in text[: 2 * SHOWN_LETTERS])
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}…"


def refuse_invalid(error: ValidationError) -> RefusedError:
    """Return the refusal for fields that do not fit; the first one is named."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return refuse(400, f"the body is not JSON: {first['msg']}", "send JSON as /openapi.json describes it")
    if first["type"] == "extra_forbidden":
        return refuse(
            422, f"{where} is not a field of this request", "leave it out; /openapi.json lists all", value=where
        )
    if first["type"] == "missing":
        return refuse(422, f"{where} is missing", f"add {where}; /openapi.json describes it", value=where)
    value = "" if not where else first["input"]
    return refuse(
        422, f"{where or 'the request'}: {first['msg']}", "correct it as /openapi.json describes", value=value
    )
