#!/usr/bin/env bash
# Makes MODEL_beyond.csv and MODEL_beyond.png: the calibrated tests on the test split, from the released checkpoint, and
# their ceiling. Knobs are swept; those with a target are chosen on the validation split. EXPRUNE_DATA_DIR names the data.
#   bash results/beyond.sh gnn
#   bash results/beyond.sh vgg11_bn
#   bash results/beyond.sh resnet18
#   bash results/beyond.sh opt
set -euo pipefail
model=${1:?gnn, vgg11_bn, resnet18 or opt}
case $model in
    gnn) data=ogbg_molhiv ;;
    vgg11_bn | resnet18) data=cifar10_jpeg ;;
    opt) data=stdlib ;;
    *) echo "error: $model: gnn, vgg11_bn, resnet18 or opt" >&2; exit 1 ;;
esac
cd "$(dirname "$0")/.."
sweep=$(mktemp -d)
trap 'rm -rf "$sweep"' EXIT

run() { # NAME OVERRIDE...
    python evaluate.py -m model="$model" data="$data" logger=none hydra.sweep.dir="$sweep/$1" "${@:2}"
}
run oracle exprune=oracle
run calibrated exprune=calibrated exprune.tau=0.01,0.02,0.05,0.1,0.2
run calibrated-chosen exprune=calibrated exprune.target_drop=0.1,1
run optimal exprune=optimal exprune.target_drop=0.1,0.5,1
run optimal-neuron exprune=optimal exprune.order=neuron exprune.target_drop=0.1,1
name=results/${model}_beyond
python -m exprune.lab.pareto "$sweep" --csv "$name.csv" --plot "$name.png"
