#!/bin/sh
# Build the three images; README.md lists the settings.
set -eu
cd "$(dirname "$0")/.."
docker=${DOCKER:-docker}
tag=${IMAGE_TAG:-0.1.0-python3.11}
digests=dist/images.env
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-dirty

if ! command -v "$docker" >/dev/null; then
  echo "error: $docker is not installed: images are built by Docker 20.10 or newer" >&2
  exit 1
fi
if ! "$docker" info >/dev/null 2>&1; then
  echo "error: $docker does not answer: start its daemon, or set DOCKER_HOST" >&2
  exit 1
fi

# How to reach the package index is this machine's business: mounted for a command, in no layer.
set --
[ -z "${SSL_CERT_FILE:-}" ] || set -- "$@" --secret "id=ca-certificates,src=$SSL_CERT_FILE"
[ -z "${PIP_CONFIG_FILE:-}" ] || set -- "$@" --secret "id=pip.conf,src=$PIP_CONFIG_FILE"
[ -z "${UV_CONFIG_FILE:-}" ] || set -- "$@" --secret "id=uv.toml,src=$UV_CONFIG_FILE"

for target in ops trainer serving; do
  # shellcheck disable=SC2086 # flags are split at spaces
  DOCKER_BUILDKIT=1 "$docker" build ${BUILD_FLAGS:-} "$@" \
    --file images/Dockerfile --target "$target" \
    --build-arg "REVISION=$revision" --tag "${IMAGE_REGISTRY:-}polarmask-$target:$tag" .
done
[ -n "${PUSH:-}" ] || exit 0

# A digest, which only a registry gives, never changes its meaning.
mkdir -p dist
: > "$digests.new"
for target in ops trainer serving; do
  name=${IMAGE_REGISTRY:-}polarmask-$target
  "$docker" push "$name:$tag"
  # Docker leaves the registry out of names on docker.io.
  digest=$("$docker" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$name:$tag" |
    sed -n -e "s|^$name@sha256:|sha256:|p" -e "s|^${name#docker.io/}@sha256:|sha256:|p" | head -n 1)
  if [ -z "$digest" ]; then
    echo "error: $name:$tag was pushed and $docker names no digest of it" >&2
    exit 1
  fi
  variable=$(echo "$target" | tr '[:lower:]' '[:upper:]')
  echo "export POLARMASK_${variable}_IMAGE=$name@$digest" >> "$digests.new"
done
mv "$digests.new" "$digests"
echo "written: $digests; run '. $digests' before you compile or submit the pipeline"
