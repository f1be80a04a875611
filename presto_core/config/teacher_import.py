"""Configuration of `presto teacher import`: where the teacher is, and what is known of it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from presto_core.config.section import Section


class ModelSourceConfig(Section):
    """A teacher that was trained elsewhere."""

    source: str = ""
    """Folder of a diffusers pipeline, or a repository of the Hugging Face hub: ORG/NAME. The command takes it as its
    argument."""
    revision: str = ""
    """Branch, tag or commit of the repository; empty uses the newest."""
    licence: str = ""
    """Licence of the model, if its folder states none or you have another one; empty uses the folder's."""
    seconds: float | None = Field(None, gt=0, le=3600)
    """Length of a clip, for a teacher that makes clips of any length; empty uses the default of its family: 10 s
    (Stable Audio 3, LongCat-Audio) or 60 s (ACE-Step 1.5)."""

    @model_serializer(mode="wrap")
    def _leave_out_no_length(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a length as before there was one, so that run ids stand."""
        content: dict[str, Any] = serialize(self)
        if content.get("seconds") is None:
            content.pop("seconds", None)
        return content
