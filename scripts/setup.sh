#!/usr/bin/env bash
# Installs what the project needs on a fresh Debian or Ubuntu machine with git, Node >= 20.19 and npm:
# npm packages, a software Vulkan driver where no GPU adapter answers, and with --tests also Chromium.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }
sudo=""; [ "$(id -u)" = 0 ] || sudo="sudo"
updated=""
apt_update() { [ -n "$updated" ] || { $sudo apt-get update -qq >&2; updated=1; }; }
apt_install() { apt_update; DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "$@" >/tmp/minference-apt.log 2>&1 || { tail -20 /tmp/minference-apt.log >&2; return 1; }; }

if [ ! -f node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  say "installing npm packages"
  npm ci --no-audit --no-fund --loglevel=error >&2
  touch node_modules/.package-lock.json
fi

adapter_answers() {
  node --input-type=module -e '
    import { create, globals } from "webgpu";
    Object.assign(globalThis, globals);
    const gpu = create([]);
    const adapter = await gpu.requestAdapter();
    process.exit(adapter ? 0 : 1);' >/dev/null 2>&1
}

# Debian 12 ships a Vulkan driver that Dawn refuses; its backports suite has a newer one, on the same mirror.
enable_backports() {
  local uri list=/etc/apt/sources.list.d/minference-backports.list
  apt_update
  uri=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(ORIGIN)' 'Created-By: Packages' |
    awk '$2 == "bookworm" && $3 == "Debian" { print $1; exit }')
  [ -n "$uri" ] || { say "no Debian 12 mirror is configured"; return 1; }
  if ! apt-get indextargets --format '$(CODENAME) $(ORIGIN)' 'Created-By: Packages' | grep -q '^bookworm-backports Debian'; then
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri bookworm-backports main" | $sudo tee "$list" >/dev/null
    updated=""; apt_update
  fi
}

if adapter_answers; then
  say "a GPU adapter answers"
elif ! command -v apt-get >/dev/null; then
  say "no GPU adapter answers, and this is no Debian or Ubuntu: install a Vulkan driver (Mesa's lavapipe will do)"
  exit 1
else
  say "no GPU adapter answers: installing Mesa's software Vulkan driver"
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  if [ "$codename" = bookworm ]; then
    enable_backports
    apt_install -t bookworm-backports mesa-vulkan-drivers libvulkan1
  else
    apt_install mesa-vulkan-drivers libvulkan1
  fi
  adapter_answers || { say "the driver is installed, but still no adapter answers"; exit 1; }
fi

if [ "${1:-}" = --tests ]; then
  if [ -x "${CHROMIUM:-/usr/bin/chromium}" ]; then
    say "Chromium is there"
  elif . /etc/os-release && [ "${ID:-}" = debian ]; then
    say "installing Chromium"
    apt_install chromium
  else
    say "Chromium comes as a snap here: set CHROMIUM to a Chrome or Chromium binary, or its tests are skipped"
  fi
  bash scripts/fetch_smollm2.sh >/dev/null || say "SmolLM2's weights cannot be had: tests that need them are skipped"
fi
say "done"
