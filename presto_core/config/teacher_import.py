"""Configuration of `presto teacher import`: where the teacher is, and what is known of it."""

from __future__ import annotations

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
