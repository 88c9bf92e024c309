#!/usr/bin/env bash
# The comparison on scenes: every row over several seeds, and the table with differences paired by seed.
#
#   launch/scenes_table.sh --seeds "0 1 2" [--rows "clip mcd"] [--scale 1.0] [--parallel 2] [--out runs/scenes_table] [--dry-run]
#   launch/scenes_table.sh --large [--steps 450] [--batch 1024] [--processes 14] ...
#
# A row has as many steps as fit into the CPU time of MCD's 2,000, times --scale; --equal gives every row MCD's steps. On 2 cores a
# run takes some 7 minutes, two at a time. With --large the rows that decide are trained at ViT-S/16 and 96 pixels on one GPU, in
# some 12 minutes for one seed: each on the same scenes, steps x batch of them, drawn by --processes while it trains, which is what
# takes the time. A run that is there already is not trained again. Ends with OUT/results.md.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

rows='' seeds='' scale=1.0 parallel='' out='' large='' equal='' steps=450 batch=1024 processes=14
(($#)) || set -- --help
while (($#)); do
  case $1 in
    --help | -h) usage "$0"; exit 0 ;;
    --dry-run) DRY_RUN=1; shift; continue ;;
    --large | --equal) printf -v "${1#--}" 1; shift; continue ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case $1 in
    --rows | --seeds | --scale | --parallel | --out | --steps | --batch | --processes) (($# > 1)) || die "$1 needs a value" ;;
    *) die "unknown argument '$1'; launch/scenes_table.sh --help lists what there is" ;;
  esac
  printf -v "${1#--}" '%s' "$2"
  shift 2
done

P=--config.objective
# row: steps in the time of MCD's (bench.step, CPU seconds of one core), config, what is changed in it
declare -A STEPS=() CONFIG=() CHANGES=()
row() { STEPS[$1]=$2 CONFIG[$1]=$3 CHANGES[$1]=${*:4}; all+=("$1"); }
all=()
row mcd 2000 mcd "$P.weights.misalignment=1" "$P.weights.clip_augmented=1" "$P.positive=teacher" "$P.measure=softmax" "$P.mask_student=False"
row clip 3000 clip
row augmented 2300 mcd "$P.weights.misalignment=0" "$P.weights.clip_augmented=1"
row term 2000 mcd
row siglip 3070 siglip
row slip 2020 slip
row uniclip 2200 uniclip
row eclipse 2780 eclipse
row filip 340 filip
row declip 310 declip

[[ -z $large ]] || : "${rows:=clip augmented mcd slip}" "${seeds:=0}" "${parallel:=1}" "${out:=runs/scenes_large}"
: "${rows:=${all[*]}}" "${seeds:=0 1 2}" "${parallel:=2}" "${out:=runs/scenes_table}"
for name in steps batch processes parallel; do check_number "--$name" "${!name}"; done
for seed in $seeds; do check_number --seeds "$seed"; done
[[ $scale =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--scale=$scale: give a number such as 0.5"
for name in $rows; do [[ -n ${CONFIG[$name]:-} ]] || die "--rows=$name: there are ${all[*]}"; done

train() {
  local name=$1 seed=$2 changes
  local workdir=$out/$name-$seed
  [[ ! -f $workdir/evals.json ]] || return 0
  read -ra changes <<<"${CHANGES[$name]}"
  if [[ -n $large ]]; then
    changes+=("--config=scenes_large:row=${CONFIG[$name]},steps=$steps,batch_size=$batch,processes=$processes")
  else
    local own=${STEPS[$name]}
    [[ -z $equal ]] || own=${STEPS[mcd]}
    changes+=("--config=scenes_${CONFIG[$name]}" "--config.steps=$(awk "BEGIN { printf \"%d\", $own * $scale }") steps")
  fi
  run mcd-jax train --workdir="$workdir" --config.seed="$seed" "${changes[@]}"
}

started=()
for seed in $seeds; do
  for name in $rows; do
    while (($(jobs -rp | wc -l) >= parallel)); do wait -n || true; done
    if [[ -n $DRY_RUN ]]; then
      train "$name" "$seed"
    else
      train "$name" "$seed" &
      started+=("$!")
    fi
  done
done
failed=0
for pid in "${started[@]}"; do wait "$pid" || failed=$((failed + 1)); done
((!failed)) || die "$failed runs failed: see above"
run mcd-jax results "$out"/*-*/ --out="$out" --formats=md,html
