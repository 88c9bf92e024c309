#!/usr/bin/env bash
# Starts N processes of one job on this machine, as on N hosts.
#
#   launch/local.sh N [--devices D] [--grace 60] [--logs DIR] [--dry-run] -- mcd-jax train --config=... --workdir=...
#
# Each process i gets JAX_COORDINATOR_ADDRESS=127.0.0.1:PORT (a free one), JAX_NUM_PROCESSES=N, JAX_PROCESS_ID=i and, with
# --devices, JAX_NUM_CPU_DEVICES=D. Its output appears here behind `[i]` and, as it is, in DIR/i.log (runs/local without --logs).
# SIGTERM and SIGINT go on to every process. When a process ends with anything but 0 the others get --grace seconds to end too,
# then SIGTERM, and as many seconds later SIGKILL.
# Exit status: that of the first process that failed; 75 when none failed and one was preempted; otherwise 0.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || die "bash $BASH_VERSION is too old; launch/local.sh needs 5.1"

count=${1:-} devices='' grace=60 logs=runs/local
if [[ -z $count || $count == --help || $count == -h ]]; then
  usage "$0"
  exit 0
fi
[[ $count =~ ^[1-9][0-9]*$ ]] || die "N=$count: give the number of processes first, such as launch/local.sh 2 -- command"
shift
while (($#)); do
  case $1 in
    --) break ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case $1 in
    --dry-run) DRY_RUN=1; shift; continue ;;
    --devices | --grace | --logs) (($# > 1)) || die "$1 needs a value" ;;
    *) die "unknown argument '$1'; the command comes after --" ;;
  esac
  printf -v "${1#--}" '%s' "$2"
  shift 2
done
[[ ${1:-} == -- && $# -gt 1 ]] || die 'give a command after --, such as -- mcd-jax train --config=... --workdir=...'
shift
[[ -z $devices ]] || check_number --devices "$devices"
check_number --grace "$grace"

# Below 32768, where Linux takes no ports for outgoing connections.
free_port() {
  local port
  while true; do
    port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

port=$(free_port)
settings=(JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$count")
[[ -z $devices ]] || settings+=(JAX_NUM_CPU_DEVICES="$devices")
if [[ -n $DRY_RUN ]]; then
  for ((i = 0; i < count; i++)); do run env "${settings[@]}" JAX_PROCESS_ID="$i" "$@"; done
  exit 0
fi

pipes=$(mktemp -d)
trap '[[ -z $timer ]] || kill -KILL -- "-$timer" 2>/dev/null || true; rm -rf "$pipes"' EXIT
pids=() readers=() timer='' failed=0 preempted=0
mkdir -p "$logs"
set -m   # a process group for each process, so that a Ctrl-C reaches them once, from here, and SIGKILL reaches their children
for ((i = 0; i < count; i++)); do
  mkfifo "$pipes/$i"
  tee "$logs/$i.log" <"$pipes/$i" | sed -u "s/^/[$i] /" &
  readers+=($!)
  env "${settings[@]}" JAX_PROCESS_ID="$i" PYTHONUNBUFFERED=1 "$@" >"$pipes/$i" 2>&1 </dev/null &
  pids+=($!)
done
set +m

to_all() { kill "-$1" "${pids[@]}" 2>/dev/null || true; }
trap 'to_all TERM' TERM
trap 'to_all INT' INT

# Ends the others: they wait for the one that is gone, some of them for ever.
end_others() {
  [[ -z $timer ]] || return 0
  set -m
  {
    sleep "$grace"
    say "launch/local.sh: ending the processes that are left"
    to_all TERM
    sleep "$grace"
    for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
  } &
  timer=$!
  disown "$timer"
  set +m
}

# Looks for ended processes five times a second: `wait -n` was seen to sleep through the end of one on a busy machine.
while ((${#pids[@]})); do
  ended=''
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null || { ended=$i; break; }
  done
  [[ -n $ended ]] || { sleep 0.2 || true; continue; }
  status=0
  wait "${pids[ended]}" || status=$?
  unset "pids[ended]"
  case $status in
    0) continue ;;
    75) preempted=75; say "launch/local.sh: process $ended was preempted (75)" ;;
    *)
      say "launch/local.sh: process $ended ended with status $status"
      ((failed)) || failed=$status
      ;;
  esac
  end_others
done
for ((i = 0; i < 20; i++)); do   # the last lines; a child that outlives its process may hold a pipe open
  kill -0 "${readers[@]}" 2>/dev/null || break
  sleep 0.1
done
exit $((failed ? failed : preempted))
