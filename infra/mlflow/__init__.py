"""MLflow as a team runs it: a server with PostgreSQL behind it, artifacts on S3 through it, and passwords in front."""
