#!/bin/sh
# Install the packages of a lock file, each by the hash of its file: install_packages.sh LOCK [INDEX OF PYTORCH'S CPU WHEELS]
set -eu
lock=$1 torch_index=${2:-}
if [ -n "$torch_index" ]; then
  # wheels of that index are no files of PyPI: their versions are those of the lock, their hashes are not in it, and they
  # need none of CUDA's packages
  torch=$(sed -n 's/^\(torch\(audio\)\{0,1\}==[^ ]*\) .*/\1/p' "$lock")
  others=$(mktemp)
  awk '/^[a-z]/ { keep = $0 !~ /^(torch|torchaudio|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ } keep' "$lock" > "$others"
  # shellcheck disable=SC2086  # two words
  pip install --no-deps --index-url "$torch_index" $torch
  lock=$others
fi
pip install --require-hashes --no-deps -r "$lock"
