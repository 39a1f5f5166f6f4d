#!/usr/bin/env bash
# Runs the tests in ./.venv, which it makes: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh
make_venv requirements-test.txt
exec .venv/bin/python -m pytest -q -n 2 "$@"
