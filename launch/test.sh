#!/usr/bin/env bash
# Runs the tests in ./.venv, which it makes: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh
make_venv requirements-test.txt
# The tests of a file share what they compile and set up, so they stay on one worker.
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile "$@"
