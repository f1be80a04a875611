"""Which files of a folder hold credentials: by their name, wherever they lie, and by how they begin."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pathspec import PathSpec

# not imported: the readers of audio take a second to load
AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".mid")
HEAD_BYTES = 65536  # read of each file; a key has a few kilobytes

# names in lower case: systems whose names have no case read `.ENV` as `.env`
PRIVATE_NAMES = (
    # environments and passwords of programs
    ".env*", "*.env", ".envrc", ".netrc", "_netrc", ".pgpass", "pgpass.conf", ".my.cnf", ".mylogin.cnf", ".htpasswd",
    ".*_history", ".vault-token", ".smbcredentials", "*.kdbx", "*.kdb", ".password-store/", "wallet.dat", "*.ovpn",
    # package registries and forges
    ".git-credentials", ".gitconfig", ".config/git/", ".config/gh/", ".config/hub", ".npmrc", ".yarnrc*", ".pypirc",
    "pip.conf", "pip.ini", ".condarc", ".gem/", ".cargo/", ".m2/", "gradle.properties", ".docker/", ".dockercfg",
    ".dockerconfigjson", ".config/containers/", "auth.json", ".huggingface/", ".cache/huggingface/",
    # clouds, clusters and object stores
    ".aws/", ".azure/", ".oci/", ".boto", ".s3cfg", ".passwd-s3fs", "rclone.conf", ".mc/", "gcloud/",
    "application_default_credentials*", "client_secret*", "*service[-_]account*.json", ".databrickscfg", ".snowflake/",
    ".mlflow/", ".ray/", ".kube/", "kubeconfig*", "*.kubeconfig", "*.tfstate*", "*.tfvars", ".terraform.d/",
    ".terraformrc", "terraform.rc", ".pulumi/",
    # keys
    ".ssh/", ".gnupg/", "secring.*", "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.keystore",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*_rsa", "*_ecdsa", "*_ed25519", "ssh_host_*",
    "auth_token*", "*.token", "cookies.sqlite*", "passwd",
)  # fmt: skip
# words that are names of music as well
PRIVATE_TITLES = (
    "*credential*", "secret*", "*_secret*", "*.secret", "*.secrets", "token", "token.*", "cookies.txt", "password*",
)  # fmt: skip
_BY_NAME = PathSpec.from_lines("gitignore", PRIVATE_NAMES)
_BY_WORD = PathSpec.from_lines("gitignore", PRIVATE_TITLES)
_BY_CONTENT = re.compile(
    rb"^-----BEGIN [A-Z ]{0,40}PRIVATE KEY"  # PEM, PKCS#8, OpenSSH, PGP
    rb'|"type":\s{0,8}"service_account"|"private_key":\s{0,8}"-----BEGIN'  # Google
    rb"|^\s{0,64}(?:client-key-data|id-token|refresh-token):\s{0,8}[\w\"']"  # kubeconfig
    rb"|^\s{0,64}aws_secret_access_key\s{0,8}=\s{0,8}[A-Za-z0-9/+]{40}\s*$"
    rb"|^PuTTY-User-Key-File-"
    rb"|^machine[ \t]+\S{1,255}[ \t]+login[ \t]+\S{1,255}[ \t\r\n]+password[ \t]"  # .netrc
    rb"|:_authToken=\S|^\s{0,64}_auth\s{0,8}=\s{0,8}\S"  # .npmrc
    rb'|"auths":\s{0,8}\{',  # Docker
    re.MULTILINE,
)


def explain_exclusion(folder: Path, name: str) -> str:
    """Return why a file of a folder must not leave this machine, or an empty text: what such files have in common.

    A link is judged by what it leads to as well, and must not lead out of the folder.

    Args:
        name: path relative to the folder.
    """
    if _has_secret_name(name):
        return "by their name"
    # not Path.resolve, which fails for a link to itself
    root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / name))
    if not target.is_relative_to(root):
        return "links that lead out of the folder"
    if target.is_dir():
        return "links to folders"
    if _has_secret_name(target.relative_to(root).as_posix()):
        return "links to files with such a name"
    try:
        with target.open("rb") as stream:
            return "by their content" if _BY_CONTENT.search(stream.read(HEAD_BYTES)) else ""
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _has_secret_name(name: str) -> bool:
    small = name.lower()
    return _BY_NAME.match_file(small) or (_BY_WORD.match_file(small) and not small.endswith(AUDIO))
