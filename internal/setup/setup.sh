#!/bin/sh
# Finds what the program needs beside Go (a usable Chromium and Node), installs
# what is missing, and writes the paths found to .cache/env, which the Makefile
# reads.
#
#   internal/setup/setup.sh         what scrape needs
#   internal/setup/setup.sh test    and what its tests need
#
# SCRAPE_CHROMIUM and SCRAPE_NODE name a program to use instead of searching.
# There is no stamp: finding is a version check of each, and takes a moment.
set -eu

cd "$(dirname "$0")/../.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/holdline

# Older ones speak an older DevTools protocol, or lack the new headless mode.
chromium_min=120
node_min=18 # what Playwright 1.60 asks for

# Pinned and checked against what the npm registry serves. Not compared with
# nodejs.org, which publishes the same program in another archive. Playwright is
# the version that go.mod drives (auth/browser).
node_version=24.21.0
node_sha512_x64=de750bb336795f47dc898a46d2de93add029273027f3e16520d3fa3a2317ed5f07aefa404cf37ddfa5352e545e389ae22d16b87bcc84a900580a72f23cd02ced
node_sha512_arm64=1692513c4cf63afbd32df8c83a5346158f492cf30a825e66f9de2819804b836e242759a6bcdd5997f1cf2601781c3689e752127afd65d5c459fc333e91e5d6e6
playwright_version=1.60.0
playwright_sha512=f5b5bacef5ff9b49446e04ca27a629a4e2b1f07dd538f04c382161da2ad714e4f805b1e0af1e613e3c0960b4f8d0bbbee2ab43dfaa8a73f1e7e7a4ad516e7b20

# Debian packages that only tests need: the race detector is linked by a C
# compiler, sinks write to a real server and pools ask real proxies, which the
# tests start themselves. As package:program.
test_packages='gcc:gcc libc6-dev:/usr/include/stdlib.h postgresql:/usr/lib/postgresql/*/bin/postgres
  squid:/usr/sbin/squid tinyproxy:/usr/bin/tinyproxy dante-server:/usr/sbin/danted microsocks:/usr/bin/microsocks
  passwd:/usr/sbin/useradd'

# What Playwright's Chromium links and a server lacks. Ubuntu 24.04 renamed
# some of them to …t64.
chromium_libraries='libasound2 libatk-bridge2.0-0 libatk1.0-0 libatspi2.0-0 libcairo2 libcups2 libdbus-1-3
  libdrm2 libgbm1 libglib2.0-0 libnspr4 libnss3 libpango-1.0-0 libx11-6 libxcb1 libxcomposite1 libxdamage1
  libxext6 libxfixes3 libxkbcommon0 libxrandr2 fonts-liberation'

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}
have() { case $1 in /*) ls -d $1 >/dev/null 2>&1 ;; *) command -v "$1" >/dev/null 2>&1 ;; esac }

# --- what is there -----------------------------------------------------------

limit=''
if have timeout; then limit='timeout 20'; fi

# version_of PROGRAM MIN prints the version it answers with, or fails.
version_of() {
  program=$(command -v "$1" 2>/dev/null) || return 1
  # Ubuntu's chromium is a stub that starts a snap, which cannot use the
  # private directories a browser gets here.
  case $(readlink -f "$program") in */snap/* | */snap) return 1 ;; esac
  if [ "$(head -c 2 "$program" | tr -d '\0')" = '#!' ] && grep -q '/snap/\|snap install' "$program"; then
    return 1
  fi
  answer=$($limit "$program" --version 2>/dev/null </dev/null) || return 1
  number=$(printf '%s\n' "$answer" | grep -o '[0-9][0-9.]*' | head -n 1)
  [ "${number%%.*}" -ge "$2" ] 2>/dev/null || return 1
  echo "$number"
}

# search WANTED MIN CANDIDATE… sets found and found_version, or fails. Empty
# WANTED means every candidate.
search() {
  wanted=$1 min=$2
  shift 2
  [ -z "$wanted" ] || set -- "$wanted"
  for candidate; do
    if found_version=$(version_of "$candidate" "$min"); then
      found=$(command -v "$candidate")
      return 0
    fi
  done
  return 1
}

find_chromium() {
  # Debian's /usr/bin/chromium is a script that adds flags of its own.
  search "${SCRAPE_CHROMIUM:-}" $chromium_min /usr/lib/chromium/chromium chromium chromium-browser \
    google-chrome google-chrome-stable "$cache/bin/chromium" || return 1
  chromium=$found chromium_version=$found_version
}

find_node() {
  search "${SCRAPE_NODE:-}" $node_min node nodejs "$cache/bin/node" || return 1
  node=$found node_found=$found_version
}

# --- apt ---------------------------------------------------------------------

# apt_version PACKAGE prints what apt would install, if it can.
apt_version() {
  LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p' | grep -v '^(none)$'
}

apt_serves_chromium() {
  case $(apt_version chromium) in '' | *snap*) return 1 ;; esac
}

apt_serves_node() {
  offered=$(apt_version nodejs) || return 1
  offered=${offered#*:}
  [ "${offered%%[!0-9]*}" -ge $node_min ] 2>/dev/null
}

installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

# apt_install PACKAGE… as root, or after asking. Without packages it only
# refreshes apt's lists.
apt_install() {
  have apt-get || die "needs these Debian packages or what they stand for: $*"
  if [ "$(id -u)" = 0 ]; then
    say "apt-get install ${*:-(refreshing its lists)}"
    sh internal/setup/apt.sh "$@" >&2 || die "apt-get failed"
    return
  fi
  command="sudo sh internal/setup/apt.sh $*"
  have sudo && [ -t 0 ] && [ -t 2 ] || die "needs root for: $command
setup: run that (it installs ${*:-nothing, it refreshes the lists of apt}), then start again"
  printf 'setup: missing: %s\nsetup: run "%s"? [y/N] ' "${*:-the lists of apt}" "$command" >&2
  read -r reply
  case $reply in [yY]*) ;; *) die "nothing was installed" ;; esac
  sudo sh internal/setup/apt.sh "$@" >&2 || die "apt-get failed"
}

# --- downloads ---------------------------------------------------------------

# registry prints the npm registry that npm's settings name; nothing without npm.
registry() {
  url=${npm_config_registry:-}
  [ -n "$url" ] || url=$(PATH=${node:+$(dirname "$node"):}$PATH npm config get registry 2>/dev/null) || url=
  case $url in http*) echo "${url%/}" ;; esac
}

# unpack PACKAGE VERSION SHA512 fetches an npm package, checks it, and puts it
# at $cache/PACKAGE-VERSION in one step.
unpack() {
  to=$cache/$1-$2
  [ ! -d "$to" ] || return 0
  from=$(registry)
  [ -n "$from" ] || die "no npm registry is known to download $1 from: name one in npm_config_registry"
  from=$from/$1/-/$1-$2.tgz
  say "downloading $1 $2"
  mkdir -p "$cache"
  tmp=$(mktemp -d "$cache/.part.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  if have curl; then
    curl -fsSL --retry 3 --connect-timeout 20 -o "$tmp/tgz" "$from" || die "cannot download $1 from the npm registry"
  else
    wget -q -t 3 -T 20 -O "$tmp/tgz" "$from" || die "cannot download $1 from the npm registry"
  fi
  echo "$3  $tmp/tgz" | sha512sum -c - >/dev/null 2>&1 || die "$1 $2 is not what was expected: its checksum differs"
  tar -xzf "$tmp/tgz" -C "$tmp"
  mv -T "$tmp/package" "$to" 2>/dev/null || [ -d "$to" ] || die "cannot write $to" # another set-up was faster
  rm -rf "$tmp"
  trap - EXIT
}

link() {
  mkdir -p "$cache/bin"
  ln -sfn "$1" "$cache/bin/$2"
}

# download_node takes Node from the npm registry, checked against a fixed sum;
# where no npm says which registry, from Node's own site, checked against the
# sums that stand beside it (over TLS; not tried where this was written).
download_node() {
  case $(uname -m) in
    x86_64) arch=x64 sum=$node_sha512_x64 ;;
    aarch64 | arm64) arch=arm64 sum=$node_sha512_arm64 ;;
    *) die "no Node for $(uname -m) to download: install Node $node_min or newer, or name it in SCRAPE_NODE" ;;
  esac
  if [ -n "$(registry)" ]; then
    unpack node-linux-$arch $node_version "$sum"
  else
    name=node-v$node_version-linux-$arch
    to=$cache/$name
    if [ ! -d "$to" ]; then
      say "downloading Node $node_version"
      mkdir -p "$cache"
      tmp=$(mktemp -d "$cache/.part.XXXXXX")
      trap 'rm -rf "$tmp"' EXIT
      for file in $name.tar.gz SHASUMS256.txt; do
        from=https://nodejs.org/dist/v$node_version/$file
        if have curl; then curl -fsSL --retry 3 --connect-timeout 20 -o "$tmp/$file" "$from"; else wget -q -t 3 -T 20 -O "$tmp/$file" "$from"; fi ||
          die "cannot download Node: install Node $node_min or newer, or name it in SCRAPE_NODE"
      done
      (cd "$tmp" && grep " $name.tar.gz\$" SHASUMS256.txt | sha256sum -c - >/dev/null 2>&1) || die "Node $node_version is not what was expected: its checksum differs"
      tar -xzf "$tmp/$name.tar.gz" -C "$tmp"
      mv -T "$tmp/$name" "$to" 2>/dev/null || [ -d "$to" ] || die "cannot write $to"
      rm -rf "$tmp"
      trap - EXIT
    fi
  fi
  link "$to/bin/node" node
}

# download_chromium has Playwright fetch its own: it knows the mirrors, and
# PLAYWRIGHT_DOWNLOAD_HOST names another. The archive comes over TLS; there is
# no published checksum to compare it with.
download_chromium() {
  unpack playwright-core $playwright_version $playwright_sha512
  say "downloading Playwright's Chromium"
  PLAYWRIGHT_BROWSERS_PATH=$cache/browsers "$node" "$to/cli.js" install --no-shell chromium >&2 ||
    say "Playwright could not download everything"
  for browser in "$cache"/browsers/chromium-*/chrome-linux*/chrome; do
    [ -x "$browser" ] || die "no Chromium: install Chromium or Google Chrome ($chromium_min or newer, no snap) and name it in SCRAPE_CHROMIUM"
    link "$browser" chromium
  done
}

# --- Go ----------------------------------------------------------------------

wanted_go=$(sed -n 's/^go //p' go.mod)
how_go="install Go $wanted_go or newer (https://go.dev/dl/; the golang package of a Debian release is often older)"
have go || die "Go is missing: $how_go"
found_go=$(go env GOVERSION 2>&1 </dev/null) || die "Go does not accept this module: $how_go
$found_go"
found_go=${found_go#go}
[ "$(printf '%s\n' "$wanted_go" "${found_go%% *}" | sort -V | head -n 1)" = "$wanted_go" ] ||
  die "Go $found_go is too old: $how_go"

# --- the set-up --------------------------------------------------------------

packages=''
want_chromium='' want_node=''
find_chromium || want_chromium=' Chromium'
find_node || want_node=' Node'
if [ -n "$want_chromium" ] && [ -n "${SCRAPE_CHROMIUM:-}" ]; then
  die "SCRAPE_CHROMIUM=$SCRAPE_CHROMIUM is not a usable Chromium ($chromium_min or newer, and no snap)"
fi
if [ -n "$want_node" ] && [ -n "${SCRAPE_NODE:-}" ]; then
  die "SCRAPE_NODE=$SCRAPE_NODE is not Node $node_min or newer"
fi
if [ "$(uname -s)" = Linux ]; then
  have setpriv || packages="$packages util-linux" # ends the browser when the program dies
  have /etc/ssl/certs/ca-certificates.crt || have /etc/pki/tls/certs/ca-bundle.crt || packages="$packages ca-certificates"
  if [ "${1:-}" = test ]; then
    for entry in $test_packages; do
      have "${entry#*:}" || packages="$packages ${entry%%:*}"
    done
  fi
elif [ -n "$want_chromium$want_node" ]; then
  die "missing:$want_chromium$want_node. Install it, and name the program in SCRAPE_CHROMIUM or SCRAPE_NODE"
fi

# The browser driver comes from the npm registry, and npm says which one that
# is. (A Node that is downloaded brings its npm along.)
driver=${PLAYWRIGHT_DRIVER_PATH:-${XDG_CACHE_HOME:-$HOME/.cache}/holdline/playwright/$playwright_version}
wants_npm() { [ -z "${npm_config_registry:-}" ] && ! have npm && [ ! -e "$driver/package/package.json" ] && have apt-get; }
if [ -z "$want_node" ] && wants_npm; then
  packages="$packages npm"
fi

if [ -n "$want_chromium$want_node$packages" ]; then
  say "missing:$want_chromium$want_node$packages"
  # A container image comes without apt's lists, and apt then offers nothing.
  if have apt-get && ! ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1; then
    apt_install
  fi
  if [ -n "$want_node" ] && apt_serves_node; then
    packages="$packages nodejs" want_node=''
    if wants_npm; then packages="$packages npm"; fi
  fi
  if [ -n "$want_chromium" ] && apt_serves_chromium; then
    packages="$packages chromium" want_chromium=''
  elif [ -n "$want_chromium" ] && have apt-get; then
    for library in $chromium_libraries; do
      apt_version "$library" >/dev/null || library=${library}t64
      installed "$library" || packages="$packages $library"
    done
  fi
  if [ -n "$want_chromium$want_node" ] && ! have curl && ! have wget; then
    packages="$packages curl"
  fi
  if [ -n "$packages" ]; then
    apt_install $packages
  fi
  if [ -n "$want_node" ]; then
    download_node
  fi
  find_node || die "Node was installed but does not run"
  if [ -n "$want_chromium" ]; then
    download_chromium
  fi
  find_chromium || die "the Chromium just installed does not run: name another in SCRAPE_CHROMIUM"
fi

say "Go $found_go, Chromium $chromium_version ($chromium), Node $node_found ($node)"
mkdir -p .cache
cat >.cache/env.part <<END
export SCRAPE_CHROMIUM='$chromium'
export SCRAPE_NODE='$node'
END
mv .cache/env.part .cache/env
