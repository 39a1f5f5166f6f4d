# shellcheck shell=bash
# Sourced by the launchers from the repository's root: `make_venv FILE` gives .venv with its pins.

# Prints the first Python that is new enough and can make a virtual environment.
find_python() {
  local candidate check='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
    if command -v "$candidate" >/dev/null && "$candidate" -c "$check" >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# What the environment must hold: the pins, and the repository's place (a moved .venv is useless).
fingerprint() {
  cat requirements.txt "$1" <(echo "$PWD") | cksum | tr ' ' '-'
}

# A run is a dozen short processes, which would all compile the same Python anew.
unset PYTHONDONTWRITEBYTECODE

# .venv/installed lists the fingerprints that are met. It is written last, so that an interrupted
# install leaves none and the next call starts over.
make_venv() {
  local list=$1 python
  if grep -qxs "$(fingerprint "$list")" .venv/installed && .venv/bin/python -c ''; then
    return
  fi
  if [[ ! -f .venv/installed ]]; then
    if ! python=$(find_python); then
      echo "error: Python 3.11 or newer with its venv module is missing; PYTHON may name one" >&2
      return 2
    fi
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
  fi
  rm -f .venv/installed
  echo "installing $list"  # uncompiled: most of the files are never imported
  if ! .venv/bin/python -m pip --disable-pip-version-check install -q --no-compile -r "$list"; then
    echo "error: pip could not install $list (is the package index reachable?)" >&2
    return 2
  fi
  { fingerprint requirements.txt; fingerprint "$list"; } >.venv/installed.part
  mv .venv/installed.part .venv/installed
}
