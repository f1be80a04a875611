"""The default music corpus: pieces composed or orchestrated, captioned, rendered, written with a manifest."""
