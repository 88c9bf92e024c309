#!/usr/bin/env bash
# Creates a Cloud TPU, brings the code there, runs a job on all workers, and starts it again after a preemption.
#
#   launch/tpu.sh create [--queued] [--slices N] [--spot | --reserved] [--valid-for 6h] [-- more flags of gcloud]
#   launch/tpu.sh sync                     the tracked files of this checkout, uncommitted changes included, to all workers
#   launch/tpu.sh setup                    Python 3.11 and this checkout with its extras [tpu,gcs] on all workers
#   launch/tpu.sh mount --bucket gs://BUCKET[/PREFIX] [--copy] [--dir /tmp/mcd_data] [--cache-mb 20000]
#   launch/tpu.sh run -- mcd-jax train --config=... --workdir=gs://...
#   launch/tpu.sh logs [--worker 0|all] [--slice 0|all] [--lines 100]
#   launch/tpu.sh stop                     SIGTERM: the job saves its step and ends with status 75
#   launch/tpu.sh watch [--tries 3] [--poll 60] [--stall 0] [flags of create and of mount] -- mcd-jax train ...
#   launch/tpu.sh status
#   launch/tpu.sh delete [--yes]
#
# Every command takes (or reads from the environment):
#   --name NAME (TPU_NAME)   --zone ZONE (TPU_ZONE)   --project PROJECT (TPU_PROJECT)
#   --accelerator v5e-256 (TPU_ACCELERATOR)           --runtime VERSION (TPU_RUNTIME; chosen from the accelerator)
#   --queued (TPU_QUEUED=1)  NAME is a queued resource; needed for --slices (TPU_SLICES) above 1
#   --dry-run                print every command, run none
#
# `run` starts the job detached and then shows the log of worker 0; a dropped ssh does not end the job.
# `watch` owns the resource: it creates it when it is missing, deletes and re-creates it after a preemption, installs, starts
# the command, starts it again at exit status 75, and ends with 0 when the job has, or with the job's status after --tries
# failures. With --stall SECONDS a job whose workers all print nothing for so long counts as failed and is started again.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

name=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} accelerator=${TPU_ACCELERATOR:-} runtime=${TPU_RUNTIME:-}
queued=${TPU_QUEUED:-} slices=${TPU_SLICES:-1} capacity='' valid_for='' worker=0 slice=0 lines=100
bucket='' copy='' dir=/tmp/mcd_data cache_mb=20000 poll=60 tries=3 stall=0 yes='' rest=() archive='' scratch='' starts=0

trap '[[ -z $scratch ]] || rm -rf "$scratch"' EXIT

# https://cloud.google.com/tpu/docs/runtimes, "PyTorch and JAX"
runtime_of() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    tpu7*) die "--accelerator=$1: TPU7x and later are not served by the Cloud TPU API; use launch/gke.sh" ;;
    *) die "--accelerator=$1: give one of v2-N v3-N v4-N v5e-N v5p-N v6e-N, such as v5e-256 (or name its --runtime)" ;;
  esac
}

# ================================================================================================================================
# The resource
# ================================================================================================================================

# tpu VERB FLAGS...: gcloud's command for a queued resource or for a single TPU VM
tpu() {
  local group=${queued:+queued-resources}
  group=${group:-tpu-vm}
  run gcloud compute tpus "$group" "$1" "${@:2}" --zone="$zone" --project="$project"
}

create() {
  local flags=(--accelerator-type="$accelerator")
  if [[ -z $queued ]]; then
    flags+=(--version="$runtime")
  elif ((slices > 1)); then
    flags+=(--runtime-version="$runtime" --node-count="$slices" --node-prefix="$name")
  else
    flags+=(--runtime-version="$runtime" --node-id="$name")
  fi
  [[ -z $capacity ]] || flags+=("--$capacity")
  [[ -z $valid_for ]] || flags+=(--valid-until-duration="$valid_for")
  tpu create "$name" "${flags[@]}" "$@"
}

describe() {
  local field=${queued:+state.state}
  tpu describe "$name" --format="value(${field:-state})"
}

delete() {
  local flags=()
  [[ -z $queued ]] || flags+=(--force)   # with its nodes
  [[ -z $yes ]] || flags+=(--quiet)
  tpu delete "$name" "${flags[@]}"
}

# ================================================================================================================================
# The workers
# ================================================================================================================================

# on all|N all|N VERB ARGUMENTS...: launch/worker.sh on those workers of those slices
on() {
  local where=(--worker="$1") remote
  [[ -z $queued ]] || where+=(--node="$2")
  remote=$(quoted bash mcd_jax/launch/worker.sh "${@:3}")
  # Before the first sync there is nothing to ask.
  [[ $3 != status ]] || remote="if [ -f mcd_jax/launch/worker.sh ]; then $remote; else echo mcd_job \$(hostname) none 0 0; fi"
  tpu ssh "$name" "${where[@]}" --command="$remote" || return
  [[ -z $DRY_RUN || $3 == status || $3 == follow ]] ||
    HOME=/home/USER bash "$root/launch/worker.sh" --dry-run "${@:3}" | sed 's/^/# on each worker: /'
}

# The archive is made once, so that a `watch` of weeks keeps running the code it was started with.
sync() {
  local where=(--worker=all) tree=HEAD unpack
  [[ -z $queued ]] || where+=(--node=all)
  if [[ -z $archive ]]; then
    archive=${TMPDIR:-/tmp}/mcd_jax-$name.tar.gz
    if [[ -z $DRY_RUN ]]; then
      scratch=${scratch:-$(mktemp -d)}
      archive=$scratch/mcd_jax.tar.gz
      tree=$(git -C "$root" stash create)   # HEAD with the uncommitted changes; empty without any
    fi
    run git -C "$root" archive --format=tar.gz --output="$archive" "${tree:-HEAD}" || return
  fi
  unpack='rm -rf mcd_jax.new && mkdir mcd_jax.new && tar -xzf mcd_jax.tar.gz -C mcd_jax.new'
  unpack+=' && rm -rf mcd_jax && mv mcd_jax.new mcd_jax'
  tpu scp "$archive" "$name:mcd_jax.tar.gz" "${where[@]}" &&
    tpu ssh "$name" "${where[@]}" --command="$unpack"
}

setup() {
  local out
  if [[ -n $DRY_RUN ]]; then
    on all all setup
    return
  fi
  out=$(on all all setup) || { say "$out"; say 'setup failed on a worker: look above, then run it again'; return 1; }
  # XLA needs the same program on every host; ranges of versions resolved on different days are not.
  if (($(awk '$1 == "mcd_packages" { print $3 }' <<<"$out" | sort -u | wc -l) > 1)); then
    say "$out"
    say 'error: the workers have different package versions; run setup again, or delete and create the TPU again'
    return 1
  fi
}

mount() {
  local path=${bucket#gs://}
  if [[ -n $copy ]]; then
    on all all copy "$bucket" "$dir"
  else
    on all all mount "${path%%/*}" "$(sed -n 's|^[^/]*/||p' <<<"$path")" "$dir" "$cache_mb"
  fi
}

start() {
  local id
  if [[ -n $DRY_RUN ]]; then id=ID; else id=$(date +%s)-$$-$((++starts)); fi
  on all all start "$id" "$@"
}

deploy() { sync && setup && { [[ -z $bucket ]] || mount; } && start "$@"; }

# ================================================================================================================================
# watch
# ================================================================================================================================

# The state of the resource in one word of ours: ready, gone (to be deleted and made again), missing, wait, unknown.
resource() {
  local out
  if ! out=$(describe 2>"$scratch/describe"); then
    if grep -qiE 'NOT_FOUND|was not found' "$scratch/describe"; then
      echo missing
    else
      cat "$scratch/describe" >&2
      echo unknown
    fi
    return
  fi
  case $out in
    READY | ACTIVE) echo ready ;;
    PREEMPTED | TERMINATED | FAILED | SUSPENDED) echo gone ;;
    STOPPED | HIDDEN) echo stopped ;;
    *) echo wait ;;
  esac
}

# The states of all workers in one word: none, running SECONDS_SINCE_OUTPUT, partly, done, again, lost, failed CODE, unreachable.
verdict() {
  local out
  out=$(on all all status 2>/dev/null) || { echo unreachable; return; }
  awk '$1 == "mcd_job" { n++; count[$3]++; if ($3 == "running" && (age == "" || $5 < age)) age = $5
                         if ($3 == "exited" && $4 == 75) again++
                         if ($3 == "exited" && $4 != 0 && $4 != 75 && !bad) bad = $4 }
       END { if (!n) print "unreachable"
             else if (count["running"] == n) print "running", age + 0
             else if (count["running"]) print "partly"
             else if (bad) print "failed", bad
             else if (count["lost"]) print "lost"
             else if (again) print "again"
             else if (count["exited"] == n) print "done"
             else if (count["exited"]) print "lost"
             else print "none" }' <<<"$out"
}

# recreate [delete]: makes the resource; false when it has to be tried again
recreate() {
  local out
  if [[ ${1:-} == delete ]]; then yes=1 delete || say 'deleting failed; trying to create all the same'; fi
  out=$(create "${extra[@]}" 2>&1) && return
  say "$out"
  if grep -qE 'PERMISSION_DENIED|INVALID_ARGUMENT|Quota|quota' <<<"$out"; then
    die 'creating failed for a reason that waiting does not cure: see above, and docs/tpu.md on quota'
  fi
  say "creating failed, probably for lack of capacity; trying again in $poll s"
  return 1
}

watch() {
  local failures=0 contact=0 deploys=0 partly=0 state job code
  if [[ -n $DRY_RUN ]]; then
    describe
    on all all status
    echo '# when it was preempted:'
    yes=1 delete
    create "${extra[@]}"
    describe
    echo '# when it is ready and no job runs, and at exit status 75:'
    deploy "$@"
    return
  fi
  scratch=$(mktemp -d)
  while true; do
    state=$(resource)
    case $state in
      missing) recreate || true ;;
      gone)
        say 'the TPU was preempted or its request failed: making it again'
        recreate delete || true
        ;;
      stopped) die "$name was stopped by hand; start it with gcloud, or delete it" ;;
      unknown) ((++contact <= 20)) || die "gcloud could not say how $name is, 20 times in a row; the last answer is above" ;;
    esac
    if [[ $state != ready ]]; then
      sleep "$poll"
      continue
    fi
    job=$(verdict)
    [[ $job == unreachable ]] || contact=0
    [[ $job == partly ]] || partly=0
    code=
    case $job in
      done) say 'the job has finished'; return 0 ;;
      none) code=new ;;
      again) say 'exit status 75: the job saved its step; starting it again'; code=75 ;;
      lost) say 'a worker lost its job without an exit status (a reboot?); starting it again'; code=75 ;;
      failed*) code=${job#failed } ;;
      partly) ((++partly < 3)) || code=1 ;;   # the others follow within a minute or two, or hang for ever
      running*) ((stall == 0 || ${job#running } < stall)) || { say "no output for ${job#running } s"; code=1; } ;;
      unreachable) ((++contact <= 20)) || die "$name is ready, but ssh to all of its workers failed 20 times in a row" ;;
    esac
    if [[ -z $code ]]; then
      sleep "$poll"
      continue
    fi
    if [[ $code != new && $code != 75 ]]; then
      on 0 0 last 30 >&2 || true
      say "the job failed with status $code ($((++failures)) of $tries)"
      ((failures < tries)) || return "$code"
    fi
    [[ $code == new ]] || on all all stop || true
    if deploy "$@"; then
      deploys=0
    else
      ((++deploys < 5)) || die 'sync, setup or start failed 5 times in a row; the reason is above'
    fi
    sleep "$poll"
  done
}

# ================================================================================================================================
# Arguments
# ================================================================================================================================

command=${1:-}
(($#)) && shift
case $command in
  create | sync | setup | mount | run | logs | stop | watch | status | delete) ;;
  '' | help | -h | --help) usage "$0"; exit 0 ;;
  *) die "unknown command '$command': give one of create sync setup mount run logs stop watch status delete" ;;
esac
while (($#)); do
  case $1 in
    --) rest=("${@:2}"); break ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case $1 in
    --dry-run) DRY_RUN=1; shift; continue ;;
    --queued) queued=1; shift; continue ;;
    --spot | --reserved)
      [[ -z $capacity || $capacity == "${1#--}" ]] || die 'give --spot or --reserved, not both'
      capacity=${1#--}; shift; continue ;;
    --copy) copy=1; shift; continue ;;
    --yes) yes=1; shift; continue ;;
    --help) usage "$0"; exit 0 ;;
    --name | --zone | --project | --accelerator | --runtime | --slices | --valid-for | --worker | --slice | --lines | --bucket | \
      --dir | --cache-mb | --poll | --tries | --stall) (($# > 1)) || die "$1 needs a value" ;;
    *) die "unknown argument '$1' of $command; launch/tpu.sh --help lists them" ;;
  esac
  key=${1#--}
  printf -v "${key//-/_}" '%s' "$2"
  shift 2
done

need "$name" '--name or TPU_NAME, such as --name=mcd'
need "$zone" '--zone or TPU_ZONE, such as --zone=us-west4-a'
need "$project" '--project or TPU_PROJECT, the id of your Cloud project'
check_name --name "$name"
for key in slices lines cache_mb poll tries stall; do check_number "--${key//_/-}" "${!key}"; done
[[ $worker =~ ^([0-9]+|all)$ && $slice =~ ^([0-9]+|all)$ ]] || die '--worker and --slice are a number or all'
((slices == 1)) || [[ -n $queued ]] || die "--slices=$slices needs --queued: several slices come as one queued resource"
[[ -z $valid_for || -n $queued ]] || die '--valid-for needs --queued: only a queued request expires'
if [[ $command == create || $command == watch ]]; then
  need "$accelerator" '--accelerator or TPU_ACCELERATOR, such as --accelerator=v5e-256'
  accelerator=$(accelerator_name "$accelerator")
  [[ $accelerator =~ ^[a-z0-9]+-[0-9]+$ ]] || die "--accelerator=$accelerator: give a type and a number, such as v5e-256"
  [[ -n $runtime ]] || runtime=$(runtime_of "$accelerator")
fi
[[ $command != mount ]] || need "$bucket" '--bucket, such as --bucket=gs://my-bucket/data'
[[ -z $bucket || $bucket == gs://?* ]] || die "--bucket=$bucket: give a path such as gs://my-bucket/data"
[[ $dir == /* ]] || die "--dir=$dir: give an absolute path, since the job starts in another folder"
extra=()
case $command in
  create) create "${rest[@]}" ;;
  run | watch)
    ((${#rest[@]})) || die "$command needs a command after --, such as -- mcd-jax train --config=... --workdir=gs://..."
    if [[ $command == watch ]]; then
      watch "${rest[@]}"
    else
      start "${rest[@]}"
      on 0 0 follow 100
    fi
    ;;
  logs)
    prefix=()
    [[ $worker$slice == *all* ]] && prefix=(prefix)
    on "$worker" "$slice" follow "$lines" "${prefix[@]}"
    ;;
  stop) on all all stop ;;
  status) describe; on all all status ;;
  *) "$command" ;;
esac
