# shellcheck shell=bash
# Shared by the scripts of this folder: messages, shell quoting, and --dry-run. Sourced, not run.

DRY_RUN=${DRY_RUN:-}

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 2
}

# The arguments as one line that a shell reads back as the same arguments.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# Runs a command after showing it; under --dry-run only prints it.
run() {
  if [[ -n $DRY_RUN ]]; then
    quoted "$@"
  else
    say "+ $(quoted "$@")"
    "$@"
  fi
}

# The comment at the top of a script is its help.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$1"; }

# need VALUE "--flag or ENVIRONMENT_VARIABLE, such as example": a missing value ends in a sentence that names what to give.
need() { [[ -n $1 ]] || die "${command:?} needs $2"; }

# Names become parts of commands and of resource paths.
check_name() {
  [[ $2 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "$1=$2: a name is of lower-case letters, digits and -, at most 40 in all"
}

check_number() { [[ $2 =~ ^[0-9]+$ ]] || die "$1=$2: give a whole number"; }

# v5e-256 is what people say; v5litepod-256 is what the API calls it.
accelerator_name() { printf '%s\n' "${1/#v5e-/v5litepod-}"; }
