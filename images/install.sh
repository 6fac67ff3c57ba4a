#!/bin/sh
# Install extras of pyproject.toml into /opt/venv, each package in the version of requirements.lock.
set -eu
cd /lock
export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
[ ! -f /run/secrets/uv.toml ] || export UV_CONFIG_FILE=/run/secrets/uv.toml
exec /opt/tools/bin/uv pip install --python /opt/venv --no-cache --compile-bytecode \
  --constraint requirements.lock --requirement pyproject.toml "$@"
