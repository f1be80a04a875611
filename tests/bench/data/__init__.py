"""The data plane against a real S3 server, as ratios measured in one run: `make bench-data`."""
