#!/usr/bin/env bash
# Make the virtual environment and install what the tests need from the system.
# CURVEWATCH_APT=0 installs no system package: the tests that need one then skip and say so.
set -euo pipefail
venv="$1"
python="${PYTHON:-python3}"

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Curvewatch needs Python 3.11 or newer, $python is $("$python" -V). Name another one: make PYTHON=python3.12" >&2
    exit 1
fi

missing=()
wants() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
wants promtool prometheus
wants prometheus-alertmanager prometheus-alertmanager
wants chromium chromium
wants kubectl kubernetes-client
wants node nodejs
wants npm npm
"$python" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)

apt=()
if [ "${#missing[@]}" -gt 0 ] && [ "${CURVEWATCH_APT:-1}" != 0 ] && command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then apt=(env DEBIAN_FRONTEND=noninteractive apt-get)
    elif sudo -n true 2>/dev/null; then apt=(sudo -n env DEBIAN_FRONTEND=noninteractive apt-get); fi
fi
install() {
    "${apt[@]}" update -q >/dev/null
    # A package that cannot be had must not keep the others away.
    for package in "$@"; do
        "${apt[@]}" install -q -y --no-install-recommends "$package" >/dev/null \
            || echo "could not install $package; the tests that need it will skip" >&2
    done
}
installing=
if [ "${#apt[@]}" -gt 0 ]; then
    echo "Installing ${missing[*]} through apt-get"
    # Python's packages come meanwhile, unless they need one of these.
    install "${missing[@]}" &
    installing=$!
    [[ " ${missing[*]} " != *" python3-venv "* ]] || wait "$installing"
elif [ "${#missing[@]}" -gt 0 ]; then
    echo "Not installed, and not allowed to install: ${missing[*]}; the tests that need them will skip" >&2
fi

# Grafana's own code, with which the tests read what panels show.
panels() {
    npm ci --prefix tests/node --silent --no-audit --no-fund --omit=optional --ignore-scripts >/dev/null \
        || echo "could not install @grafana/data; the tests that need it will skip" >&2
}
fetching=
if command -v npm >/dev/null 2>&1; then
    panels &
    fetching=$!
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
[ -z "$installing" ] || wait "$installing"
if [ -n "$fetching" ]; then wait "$fetching"; elif command -v npm >/dev/null 2>&1; then panels; fi
