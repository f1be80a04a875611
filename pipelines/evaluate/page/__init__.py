"""The page of an evaluation: a report's files copied to this machine, and HTML of them that needs no server."""
