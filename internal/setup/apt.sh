#!/bin/sh
# Installs the named Debian packages. The one part of the set-up that needs
# root, kept apart so that it can be read before it is allowed:
#
#   sudo internal/setup/apt.sh chromium nodejs
set -eu

[ "$(id -u)" = 0 ] || { echo "apt.sh: needs root" >&2; exit 1; }

# Packages that bring a service (a database, for tests) start it when they are
# installed. Debian asks this file first, and 101 means "not allowed".
guard=/usr/sbin/policy-rc.d
if [ ! -e "$guard" ] || grep -q 'holdline setup' "$guard"; then
  trap 'rm -f "$guard"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  printf '#!/bin/sh\n# holdline setup, removed when it ends\nexit 101\n' >"$guard"
  chmod 755 "$guard"
fi

# A machine that has just started often updates itself: wait for its locks.
# DPkg::Lock::Timeout covers installing, but not the lists in older versions.
export DEBIAN_FRONTEND=noninteractive
get() { apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"; }

tries=0
until log=$(LC_ALL=C get update 2>&1); do
  tries=$((tries + 1))
  case $log in
    *"Could not get lock"*) [ $tries -lt 60 ] || break ;;
    *) break ;; # a broken foreign source need not stop us: installing decides
  esac
  sleep 5
done
if [ $# -gt 0 ]; then
  get install --no-install-recommends "$@" || { printf '%s\n' "$log" >&2; exit 1; }
fi
