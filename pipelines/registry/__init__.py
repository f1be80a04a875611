"""The model registry: find, compare, move and promote versions of artifacts, with their lineage and quality."""
