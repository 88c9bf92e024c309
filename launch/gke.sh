#!/usr/bin/env bash
# Runs jobs on TPUs in Google Kubernetes Engine through xpk: one slice or several, queued by Kueue, restarted by JobSet.
#
#   launch/gke.sh cluster-create [--slices N] [--spot | --on-demand | --flex | --reservation R] [-- more flags of xpk]
#   launch/gke.sh image                    builds launch/Dockerfile from this checkout and pushes it
#   launch/gke.sh mount --bucket gs://BUCKET [--dir /data]     every later workload sees the bucket, read only
#   launch/gke.sh run [--slices N] [--max-restarts 100] -- mcd-jax train --workdir=gs://...
#   launch/gke.sh logs [--worker 0|all] [--slice 0|all] [--lines 100]
#   launch/gke.sh inspect                  what Kueue and Kubernetes say about the workload
#   launch/gke.sh list
#   launch/gke.sh delete [--yes]           the workload
#   launch/gke.sh cluster-delete [--yes]
#
# Every command takes (or reads from the environment):
#   --cluster NAME (GKE_CLUSTER)   --zone ZONE (TPU_ZONE)   --project PROJECT (TPU_PROJECT)
#   --workload NAME (GKE_WORKLOAD) --accelerator v5e-256 (TPU_ACCELERATOR)   --slices N (TPU_SLICES)
#   --image REGION-docker.pkg.dev/PROJECT/REPOSITORY/NAME:TAG (GKE_IMAGE; chosen from project, region and commit)
#   --dry-run                      print every command, run none
#
# xpk comes from requirements-xpk.txt, in an environment of its own. A workload that ends with status 75 (preempted, its step
# saved) is started again, and so is one whose node was taken away; any other status ends it.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

cluster=${GKE_CLUSTER:-} workload=${GKE_WORKLOAD:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} image=${GKE_IMAGE:-}
accelerator=${TPU_ACCELERATOR:-} slices=${TPU_SLICES:-1} capacity=() reservation='' max_restarts=100
bucket='' dir=/data worker=0 slice=0 lines=100 yes='' rest=()

# at VERB... FLAGS: an xpk command about the cluster
at() { run xpk "$@" --cluster="$cluster" --project="$project" --zone="$zone"; }

cluster_create() {
  at cluster create --tpu-type="$accelerator" --num-slices="$slices" "${capacity[@]}" --enable-gcsfuse-csi-driver "$@"
}

build_image() {
  run gcloud auth configure-docker "${image%%/*}" --quiet
  run docker build --platform=linux/amd64 --file="$root/launch/Dockerfile" --tag="$image" "$root"
  run docker push "$image"
}

attach_bucket() {
  local path=${bucket#gs://}
  [[ $path != */* ]] || die "--bucket=$bucket: xpk attaches whole buckets; give gs://${path%%/*}"
  at storage attach "$path" --type=gcsfuse --bucket="$path" --mount-point="$dir" --readonly=true --auto-mount=true \
    --mount-options=implicit-dirs
}

# `exec` puts the program in the place of xpk's subshell, which gets the SIGTERM of a preemption and would not pass it on.
# 300 s of grace: the time to save a step before the pod is killed (a spot node gives less).
create_workload() {
  at workload create --workload="$workload" --tpu-type="$accelerator" --num-slices="$slices" --docker-image="$image" \
    --max-restarts="$max_restarts" --restart-on-exit-codes=75 --termination-grace-period-seconds=300 \
    --env=JAX_DISTRIBUTED=auto --command="exec $(quoted "$@")"
}

# The labels are JobSet's: job-index is the slice, job-completion-index the worker in it.
show_logs() {
  local selector=jobset.sigs.k8s.io/jobset-name=$workload
  [[ $slice == all ]] || selector+=,jobset.sigs.k8s.io/job-index=$slice
  [[ $worker == all ]] || selector+=,batch.kubernetes.io/job-completion-index=$worker
  run gcloud container clusters get-credentials "$cluster" --location="${zone%-*}" --project="$project"
  run kubectl logs --selector="$selector" --container=jax-tpu --tail="$lines" --prefix --max-log-requests=1000 --follow
}

command=${1:-}
(($#)) && shift
case $command in
  cluster-create | image | mount | run | logs | inspect | list | delete | cluster-delete) ;;
  '' | help | -h | --help) usage "$0"; exit 0 ;;
  *) die "unknown command '$command': give one of cluster-create image mount run logs inspect list delete cluster-delete" ;;
esac
while (($#)); do
  case $1 in
    --) rest=("${@:2}"); break ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case $1 in
    --dry-run) DRY_RUN=1; shift; continue ;;
    --spot | --on-demand | --flex) capacity+=("$1"); shift; continue ;;
    --yes) yes=1; shift; continue ;;
    --help) usage "$0"; exit 0 ;;
    --cluster | --workload | --zone | --project | --image | --accelerator | --slices | --reservation | --max-restarts | --bucket | \
      --dir | --worker | --slice | --lines) (($# > 1)) || die "$1 needs a value" ;;
    *) die "unknown argument '$1' of $command; launch/gke.sh --help lists them" ;;
  esac
  key=${1#--}
  printf -v "${key//-/_}" '%s' "$2"
  shift 2
done

need "$cluster" '--cluster or GKE_CLUSTER, such as --cluster=mcd'
need "$zone" '--zone or TPU_ZONE, such as --zone=us-west4-a'
need "$project" '--project or TPU_PROJECT, the id of your Cloud project'
check_name --cluster "$cluster"
for key in slices lines max_restarts; do check_number "--${key//_/-}" "${!key}"; done
[[ $worker =~ ^([0-9]+|all)$ && $slice =~ ^([0-9]+|all)$ ]] || die '--worker and --slice are a number or all'
[[ -z $reservation ]] || capacity+=("--reservation=$reservation")
((${#capacity[@]} <= 1)) || die "give one of --spot --on-demand --flex --reservation, not ${capacity[*]}"
[[ -n $image ]] || image=${zone%-*}-docker.pkg.dev/$project/mcd-jax/mcd_jax:$(git -C "$root" rev-parse --short HEAD)
case $command in
  run | logs | inspect | delete)
    need "$workload" '--workload or GKE_WORKLOAD, such as --workload=mcd-1'
    check_name --workload "$workload"
    ;;
esac
case $command in
  run | cluster-create)
    need "$accelerator" '--accelerator or TPU_ACCELERATOR, such as --accelerator=v5e-256'
    accelerator=$(accelerator_name "$accelerator")
    ;;
esac
force=()
[[ -z $yes ]] || force=(--force)
case $command in
  cluster-create)
    ((${#capacity[@]})) || die 'cluster-create needs one of --spot --on-demand --flex --reservation R: where the TPUs come from'
    cluster_create "${rest[@]}"
    ;;
  image) build_image ;;
  mount)
    [[ $bucket == gs://?* ]] || die 'mount needs --bucket, such as --bucket=gs://my-bucket'
    attach_bucket
    ;;
  run)
    ((${#rest[@]})) || die 'run needs a command after --, such as -- mcd-jax train --config=... --workdir=gs://...'
    create_workload "${rest[@]}"
    ;;
  logs) show_logs ;;
  inspect) at inspector --workload="$workload" --print-to-terminal ;;
  list) at workload list ;;
  delete) at workload delete --workload="$workload" "${force[@]}" ;;
  cluster-delete) at cluster delete "${force[@]}" ;;
esac
