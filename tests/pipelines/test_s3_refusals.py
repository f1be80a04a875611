"""A setting or a URI that not every S3 client can obey is refused by its name; what boto3 obeys, Arrow obeys too."""

import os
from pathlib import Path

import pytest

from pipelines.presets.resolve import load_stage_config
from pipelines.storage.filesystem import open_folder
from pipelines.storage.s3_clients import ArrowLocation, BucketAccess, _locate_bucket
from pipelines.storage.s3_session import fingerprint_environment
from pipelines.storage.s3_settings import load_settings
from presto_core.artifacts.store import StoreError
from presto_core.config.loader import ConfigError

SECRET = "geheim/1@"  # has characters that URLs escape
AWS = "s3.eu-central-1.amazonaws.com"
REGIONAL = "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of S3 or of a proxy of this machine, but keys."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")


def test_a_dead_proxy_is_named(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.internal")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9; correct http_proxy"):
        open_folder("s3://latents/x")


# --- what is refused by its name


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ENDPOINT_URL": "localhost:9000"}, r"AWS_ENDPOINT_URL=localhost:9000 .*http://localhost:9000"),
        ({"AWS_ENDPOINT_URL_S3": "s3.example"}, r"AWS_ENDPOINT_URL_S3=s3\.example .*https://s3\.example"),
        ({"AWS_ENDPOINT_URL": f"https://me:{SECRET}s3.example"}, "AWS_ENDPOINT_URL .*AWS_ACCESS_KEY_ID"),
        ({"AWS_ENDPOINT_URL": "ftp://s3.example"}, "AWS_ENDPOINT_URL.*'ftp'"),
        ({"AWS_ENDPOINT_URL": "http://"}, "AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://s3.example:port"}, "AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://s3.example/?x=1"}, "AWS_ENDPOINT_URL"),
        ({"HTTP_PROXY": "socks5://me:geheim@proxy:1080"}, r"HTTP_PROXY .*'socks5'.*NO_PROXY=s3\.example"),
        ({"http_proxy": f"http://me:{SECRET}proxy:x"}, "http_proxy"),
        ({"AWS_ENDPOINT_URL": "https://s3.example", "AWS_CA_BUNDLE": "/nope"}, "AWS_CA_BUNDLE=/nope "),
        ({"AWS_ENDPOINT_URL": "https://s3.example", "AWS_CA_BUNDLE": "ca.pem"}, "AWS_CA_BUNDLE=ca.pem .*/ca.pem"),
        ({"AWS_ENDPOINT_URL": "https://s3.example", "REQUESTS_CA_BUNDLE": "/tmp"}, "REQUESTS_CA_BUNDLE=/tmp "),
        ({"AWS_ENDPOINT_URL": "https://s3.example", "SSL_CERT_FILE": __file__}, "SSL_CERT_FILE="),
        ({"HTTP_PROXY": f"http://me:{SECRET}proxy:1080"}, "HTTP_PROXY"),
        ({"AWS_REGION": "eu central"}, "'eu central'.*AWS_REGION"),
    ],
)
def test_a_setting_that_cannot_be_obeyed_is_named(environment: dict[str, str], message: str, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.example")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=message) as caught:
        open_folder("s3://latents/x")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("S3://latents/x", "write s3://latents/x"),
        ("s3a://latents/x", "write s3://latents/x"),
        ("s3:/latents/x", "write s3://latents/x"),
        ("https://latents.s3.eu-west-1.amazonaws.com/a/b", "write s3://latents/a/b"),
        ("https://s3.amazonaws.com/latents/a", "write s3://latents/a"),
        ("https://s3.example/latents/a", "AWS_ENDPOINT_URL"),
        (f"s3://KEY:{SECRET.replace('/', '-')}latents/x", "AWS_ACCESS_KEY_ID"),
        ("s3://host:9000/latents", "AWS_ENDPOINT_URL"),
        ("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine/x", "ARN"),
        ("s3://mine--use1-az4--x-s3/x", "S3 Express"),
        ("s3://my bucket/x", "'my bucket'"),
        ("s3://latents//x", "//"),
        ("s3://latents/a/../b", r"'\.\.'"),
        ("s3:///x", "no bucket"),
    ],
)
def test_another_spelling_of_a_bucket_is_refused_with_the_right_one(uri: str, message: str):
    with pytest.raises(StoreError, match=message) as caught:
        open_folder(uri, setting="storage.root")
    assert "storage.root" in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "key"), [("ingest", "codec.path"), ("ingest", "text.path"), ("corpus", "corpus.folder")]
)
def test_a_setting_that_takes_local_folders_only_is_named(stage: str, key: str):
    """As a path, the URI would be a folder `s3:` below the current one."""
    with pytest.raises(ConfigError, match=f"{key}.*s3://latents/x"):
        load_stage_config(stage, [f"{key}=s3://latents/x"])


# --- what boto3 obeys, Arrow obeys


@pytest.mark.parametrize(
    ("bucket", "environment", "profile", "expected"),
    [
        ("music", {}, "", ("https", AWS, True)),
        ("my.music", {}, "", ("https", AWS, False)),
        ("MyMusic", {}, "", ("https", AWS, False)),
        ("music", {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "", ("https", f"s3.dualstack.{AWS[3:]}", True)),
        (
            "music",
            {"AWS_USE_FIPS_ENDPOINT": "true", "AWS_REGION": "us-west-2"},
            "",
            ("https", "s3-fips.us-west-2.amazonaws.com", True),
        ),
        ("music", {"AWS_REGION": "us-east-1", REGIONAL: "regional"}, "", ("https", "s3.us-east-1.amazonaws.com", True)),
        ("music", {}, "s3 =\n  use_accelerate_endpoint = true", ("https", "s3-accelerate.amazonaws.com", True)),
        ("music", {}, "s3 =\n  addressing_style = path", ("https", AWS, False)),
        ("music", {}, "endpoint_url = http://s3.example", ("http", "s3.example", False)),
        ("music", {}, "endpoint_url = http://a.b/c\ns3 =\n  addressing_style = virtual", ("http", "a.b/c", True)),
        ("music", {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "https://b:2"}, "", ("https", "b:2", False)),
        ("music", {"AWS_ENDPOINT_URL": "http://a:1"}, "endpoint_url = http://b:2", ("http", "a:1", False)),
        ("music", {}, "services = mine\n[services mine]\ns3 =\n  endpoint_url = http://c:3", ("http", "c:3", False)),
        (
            "music",
            {"AWS_ENDPOINT_URL": "http://a", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            "",
            ("https", AWS, True),
        ),
    ],
)
def test_arrow_is_sent_where_boto3_goes(bucket, environment, profile, expected, tmp_path: Path, monkeypatch):
    (tmp_path / "config").write_text(f"[default]\nregion = eu-central-1\n{profile}\n")
    for name, value in {"AWS_CONFIG_FILE": str(tmp_path / "config"), **environment}.items():
        monkeypatch.setenv(name, value)
    access = BucketAccess(bucket, load_settings().endpoint)
    assert _locate_bucket(fingerprint_environment(), access) == ArrowLocation(*expected)


def test_a_profile_that_cannot_be_obeyed_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for profile, message in (("s3 =\n  addressing_style = odd", "odd"), ("services = none", "none"), ("[", "config")):
        (tmp_path / "config").write_text(f"[default]\n{profile}\n")
        os.utime(tmp_path / "config", ns=(0, hash(profile) % 10**9))
        with pytest.raises(StoreError, match=message):
            open_folder("s3://latents/x")
