#!/bin/sh
# Build the images named on the command line, or all three; README.md tells what can be set.
set -eu
cd "$(dirname "$0")/.."
docker=${DOCKER:-docker}
tag=${IMAGE_TAG:-0.1.0-python3.11}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-dirty

if ! command -v "$docker" >/dev/null; then
  echo "error: $docker is not installed: images need Docker 20.10 or newer, or DOCKER=podman" >&2
  exit 1
fi
if ! "$docker" info >/dev/null 2>&1; then
  echo "error: $docker does not answer: start its daemon, or set DOCKER_HOST" >&2
  exit 1
fi

# What reaches the package index comes from here and is mounted for a command: no layer keeps it.
set -- "${@:-}"
targets=${*:-ops trainer serving}
set --
[ -z "${SSL_CERT_FILE:-}" ] || set -- "$@" --secret "id=ca-certificates,src=$SSL_CERT_FILE"
[ -z "${PIP_CONFIG_FILE:-}" ] || set -- "$@" --secret "id=pip.conf,src=$PIP_CONFIG_FILE"
[ -z "${UV_CONFIG_FILE:-}" ] || set -- "$@" --secret "id=uv.toml,src=$UV_CONFIG_FILE"

for target in $targets; do
  # shellcheck disable=SC2086 # flags are split at spaces
  DOCKER_BUILDKIT=1 "$docker" build ${BUILD_FLAGS:-} "$@" \
    --file images/Dockerfile --target "$target" \
    --build-arg "REVISION=$revision" --tag "${IMAGE_REGISTRY:-}polarmask-$target:$tag" .
done
