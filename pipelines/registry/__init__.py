"""The register of artifacts: what versions were made from and how good they are; to find, move, promote."""
