# shellcheck shell=bash
# Shared by the scripts beside it; sourced after `cd` to the repository's root.

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# quietly LOG COMMAND...: runs a command with its output in a file; shows the end of it only when the command fails.
quietly() {
  local log=$1
  shift
  mkdir -p "$(dirname "$log")"
  "$@" >"$log" 2>&1 && return 0
  local code=$?
  say "failed: $*"
  tail -n 40 "$log" >&2
  say "(all of it: $log)"
  return "$code"
}

# as_root COMMAND...: runs it as root, by sudo where that is needed.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "packages are missing and this is neither root nor is there sudo: $*"
  fi
}

jobs() { nproc 2>/dev/null || echo 2; }
