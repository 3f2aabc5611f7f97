#!/bin/sh
# Install what `make test-page` needs: Chromium with its driver (Debian, Ubuntu), Selenium and
# axe-core. VENV: the virtual environment that gets the last two; .venv by default. Needs npm.
set -eu
venv=${VENV:-.venv}
if ! command -v chromedriver > /dev/null || ! { command -v chromium || command -v google-chrome; } > /dev/null; then
  run=$([ "$(id -u)" = 0 ] || echo sudo)
  $run apt-get update -qq
  $run apt-get install -y -qq --no-install-recommends chromium chromium-driver
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check 'selenium>=4.30,<5'
npm install --silent --no-fund --no-audit --no-save --prefix "$venv/axe" axe-core@4.14.1
