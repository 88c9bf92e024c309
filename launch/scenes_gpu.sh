#!/usr/bin/env bash
# The rows of the comparison on scenes that decide, at ViT-S/16 and 96 pixels, on one GPU in some 12 minutes.
#
#   launch/scenes_gpu.sh [--steps 450] [--batch 1024] [--processes 14] [--seeds "0"] [--out runs/scenes_gpu] [--dry-run]
#
# Every row sees the same scenes, steps x batch of them, each once; they are drawn while it trains, by --processes, and that is what
# takes the time. A run that is there already is not trained again. Ends with the table, OUT/results.md.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

steps=450 batch=1024 processes=14 seeds=0 out=runs/scenes_gpu
while (($#)); do
  case $1 in
    --help | -h) usage "$0"; exit 0 ;;
    --dry-run) DRY_RUN=1; shift; continue ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case $1 in
    --steps | --batch | --processes | --seeds | --out) (($# > 1)) || die "$1 needs a value" ;;
    *) die "unknown argument '$1'; launch/scenes_gpu.sh --help lists what there is" ;;
  esac
  printf -v "${1#--}" '%s' "$2"
  shift 2
done
for name in steps batch processes; do check_number "--$name" "${!name}"; done
for seed in $seeds; do check_number --seeds "$seed"; done

# row NAME CONFIG [OVERRIDES]
row() {
  local seed
  for seed in $seeds; do
    [[ -f $out/$1-$seed/evals.json ]] || run mcd-jax train --workdir="$out/$1-$seed" --config.seed="$seed" "${@:3}" \
      --config="scenes_large:row=$2,steps=$steps,batch_size=$batch,processes=$processes"
  done
}

row clip clip
row augmented mcd --config.objective.weights.misalignment=0 --config.objective.weights.clip_augmented=1
row mcd mcd
row slip slip
run mcd-jax results "$out"/*/ --out="$out" --formats=md,html
