#!/bin/sh
# Rewrite requirements.lock: every version for Python 3.10 to 3.13, no host names.
# The GPU packages that torch asks for are left to pip: a CPU build of torch does not want them.
set -eu
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
# The newest torch whose CPU build the project's machines hold; users may take any from 2.9 on.
echo "torch==2.13.0" > "$constraints"
.venv/bin/python -m uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 \
    --constraint "$constraints" --no-emit-index-url --no-annotate --no-header --upgrade --quiet \
    | grep -vE '^(nvidia-|cuda-|triton)' > requirements.lock
# The same versions with a hash of every file, GPU packages included, of what a run needs: for machines whose pip
# reaches PyPI's own builds. `pip install --require-hashes -r requirements.hashes.lock`, then the package with --no-deps.
.venv/bin/python -m uv pip compile pyproject.toml --extra rewards --extra cluster --extra s3 --universal \
    --python-version 3.10 --constraint requirements.lock --generate-hashes --no-emit-index-url --no-annotate --no-header \
    --quiet > requirements.hashes.lock
