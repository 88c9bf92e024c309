#!/usr/bin/env bash
# What launch/tpu.sh does on each TPU VM worker; it comes here with `tpu.sh sync`.
#
#   worker.sh [--dry-run] setup                  Python 3.11, the requirements and jax[tpu] into ~/mcd_venv
#   worker.sh [--dry-run] start ID COMMAND...    end our previous job, clear a stale TPU lock, start COMMAND detached
#   worker.sh follow LINES [prefix]              the log from its last LINES lines on, until the job ends; its exit status
#   worker.sh last LINES                         the last lines of the log
#   worker.sh status                             one line: mcd_job HOST none|running|lost|exited [CODE] [SECONDS_SINCE_LAST_OUTPUT]
#   worker.sh [--dry-run] stop                   SIGTERM (the job saves its step), after 180 s SIGKILL
#   worker.sh [--dry-run] mount BUCKET PREFIX DIR CACHE_MB    the bucket at DIR through gcsfuse, read only
#   worker.sh [--dry-run] copy gs://BUCKET/PATH DIR           the objects onto the local disk
#
# The job's files are in ~/mcd_job: log (all starts, appended), pid, exit. A second `start` with the same ID does nothing, so
# that an ssh that gcloud repeats after a broken connection does not start the job twice.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

job=${MCD_JOB_DIR:-$HOME/mcd_job}
venv=${MCD_VENV:-$HOME/mcd_venv}
lock=${MCD_LOCKFILE:-/tmp/libtpu_lockfile}
grace=${MCD_STOP_GRACE:-180}

setup() {
  local uv=$HOME/.local/bin/uv
  # TPU VM images bring Python 3.10, jax needs 3.11; uv brings its own, and installs in seconds where pip takes minutes.
  run python3 -m pip install --quiet --user --upgrade uv
  run "$uv" venv --quiet --allow-existing --python 3.11 "$venv"
  run "$uv" pip install --quiet --python "$venv/bin/python" --editable "$(dirname "$here")[tpu,gcs]"
  [[ -n $DRY_RUN ]] || printf 'mcd_packages %s %s\n' "$(hostname)" \
    "$("$uv" pip freeze --exclude-editable --python "$venv/bin/python" | sort | sha256sum | cut -c1-12)"
}

# True while any process of the job's session lives. A pid file from before a reboot names a process that is gone.
alive() {
  local pid boot
  [[ -s $job/pid ]] || return 1
  read -r pid boot <"$job/pid"
  [[ $boot == "$(</proc/sys/kernel/random/boot_id)" ]] && kill -0 -- "-$pid" 2>/dev/null
}

stop() {
  local pid boot waited=0
  if [[ -n $DRY_RUN ]]; then
    echo 'kill -TERM PID_OF_OUR_JOB'
    return
  fi
  alive || return 0
  read -r pid boot <"$job/pid"
  say "$(hostname): ending the job of process $pid"
  kill -TERM "$pid" 2>/dev/null || true
  until ! alive; do
    ((++waited <= grace * 5)) || break
    sleep 0.2
  done
  ! alive || kill -KILL -- "-$pid" 2>/dev/null || true
}

start() {
  local id=$1 i
  shift
  (($#)) || die "start needs an ID and a command"
  if [[ -z $DRY_RUN && -f $job/id && $(<"$job/id") == "$id" ]]; then
    say "$(hostname): $id is started already"
    return
  fi
  stop
  # Left behind by a killed process, it makes libtpu say "The TPU is already in use"; another user's needs sudo.
  if [[ -n $DRY_RUN ]]; then
    run sudo rm -f "$lock"
    quoted setsid nohup env JAX_DISTRIBUTED=auto "$@"
    return
  fi
  [[ ! -e $lock ]] || rm -f "$lock" 2>/dev/null || sudo rm -f "$lock"
  mkdir -p "$job"
  rm -f "$job/pid" "$job/exit"
  printf '%s\n' "$id" >"$job/id"
  printf '=== %s %s: %s\n' "$(date -u +%FT%TZ)" "$(hostname)" "$(quoted "$@")" >>"$job/log"
  setsid nohup "$here/worker.sh" supervise "$@" >>"$job/log" 2>&1 </dev/null &
  for ((i = 0; i < 100; i++)); do
    [[ ! -s $job/pid ]] || break
    sleep 0.1
  done
  [[ -s $job/pid ]] || { say "$(hostname): the job did not start; see $job/log"; exit 1; }
  say "$(hostname): started"
}

# The detached side of `start`: runs the command, passes SIGTERM to it alone (its data workers must live while it saves its
# step), and writes its exit status down.
supervise() {
  local status child signalled=1
  printf '%s %s\n' "$$" "$(</proc/sys/kernel/random/boot_id)" >"$job/pid"
  cd "$here/.."
  env JAX_DISTRIBUTED=auto PYTHONUNBUFFERED=1 PATH="$venv/bin:$PATH" "$@" &
  child=$!
  trap 'signalled=1; kill -TERM "$child" 2>/dev/null || true' TERM INT HUP
  while [[ -n $signalled ]]; do   # a signal ends `wait` early
    signalled=
    status=0
    wait "$child" || status=$?
  done
  printf '=== exit status %s\n' "$status"
  printf '%s\n' "$status" >"$job/exit.new"
  mv "$job/exit.new" "$job/exit"
}

status() {
  local age=0 running=''
  ! alive || running=1   # asked first: a job that ends meanwhile has written its status
  [[ ! -f $job/log ]] || age=$(($(date +%s) - $(stat -c %Y "$job/log")))
  if [[ -f $job/exit ]]; then
    echo "mcd_job $(hostname) exited $(<"$job/exit") $age"
  elif [[ -n $running ]]; then
    echo "mcd_job $(hostname) running 0 $age"
  elif [[ -f $job/pid ]]; then
    echo "mcd_job $(hostname) lost 0 $age"
  else
    echo "mcd_job $(hostname) none 0 0"
  fi
}

follow() {
  local lines=${1:-100} prefix=${2:-} pid boot until_end=() i
  [[ -f $job/log ]] || die "$(hostname) has no log; start a job first"
  if alive; then
    read -r pid boot <"$job/pid"
    until_end=(-F "--pid=$pid")
  fi
  if [[ -n $prefix ]]; then
    tail -n "$lines" "${until_end[@]}" "$job/log" | sed -u "s/^/[$(hostname)] /"
  else
    tail -n "$lines" "${until_end[@]}" "$job/log"
  fi
  for ((i = 0; i < 50; i++)); do   # `tail` ends with the process, the status is written just before
    [[ ! -f $job/exit ]] || exit "$(<"$job/exit")"
    ((${#until_end[@]})) || break
    sleep 0.1
  done
  say "$(hostname): the job is gone without an exit status"
  exit 1
}

last() { tail -n "$1" "$job/log"; }

mount_bucket() {
  local bucket=$1 prefix=$2 dir=$3 cache_mb=$4 codename=jammy
  local list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
  local apt=(sudo apt-get -o DPkg::Lock::Timeout=600 -qq)   # a fresh VM upgrades itself and holds the lock for minutes
  local only=()
  [[ -z $prefix ]] || only=(--only-dir "$prefix")
  # https://cloud.google.com/storage/docs/cloud-storage-fuse/install
  if [[ -n $DRY_RUN ]] || ! command -v gcsfuse >/dev/null; then
    [[ -n $DRY_RUN ]] || codename=$(lsb_release -cs)
    run sudo curl -fsSL -o "$key" https://packages.cloud.google.com/apt/doc/apt-key.gpg
    run sudo bash -c "echo 'deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$codename main' >$list"
    run "${apt[@]}" update
    run "${apt[@]}" install -y gcsfuse
  fi
  run mkdir -p "$dir" "$HOME/gcsfuse_cache"
  [[ -z $DRY_RUN ]] && mountpoint -q "$dir" && { say "$(hostname): $dir is mounted already"; return; }
  # Random reads of records fill the cache only with cache-file-for-range-read.
  run gcsfuse -o ro --implicit-dirs "${only[@]}" --cache-dir="$HOME/gcsfuse_cache" --file-cache-max-size-mb="$cache_mb" \
    --file-cache-cache-file-for-range-read "$bucket" "$dir"
}

copy_bucket() {
  run mkdir -p "$2"
  run gcloud storage rsync --recursive "$1" "$2"
}

if [[ ${1:-} == --dry-run ]]; then
  DRY_RUN=1
  shift
fi
command=${1:-}
(($#)) && shift
case $command in
  setup | start | supervise | stop | status | follow | last) "$command" "$@" ;;
  mount) mount_bucket "$@" ;;
  copy) copy_bucket "$@" ;;
  *) usage "$0" >&2; die "unknown command '$command'" ;;
esac
