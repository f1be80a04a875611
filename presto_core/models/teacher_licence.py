"""The licence of a teacher's folder, which models made from it inherit."""

from __future__ import annotations

import re
from pathlib import Path

from presto_core.models.teacher_components import TeacherError


def find_licence(path: Path) -> str:
    """Return the licence that README.md's front matter names, else the first line of a licence file; "" if neither."""
    readme = path / "README.md"
    if readme.is_file():
        front = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        found = dict(re.findall(r"^(license(?:_name)?):\s*[\"']?([^\"'\n]+)", front[1], re.MULTILINE)) if front else {}
        licence = found.get("license_name") or found.get("license") or ""
        if licence.strip():
            return licence.strip()[:80]
    for file in sorted(path.glob("LICEN[CS]E*")):
        if lines := [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]:
            return lines[0][:80]
    return ""


def check_licence(licence: str, path: Path) -> None:
    """Refuse a licence without derivatives: a distilled model is one; raises TeacherError."""
    text = licence.lower()
    if re.search(r"(^|[-_ ])nd($|[-_ ])|no.?deriv", text):
        raise TeacherError(
            f"licence {licence} of {path} forbids models made from it, and a distilled model is one; ask its owner, "
            "and with a permission set model.licence to its name"
        )
