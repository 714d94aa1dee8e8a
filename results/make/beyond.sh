#!/usr/bin/env bash
# Makes NETWORK/beyond.csv and NETWORK/beyond.png: the calibrated tests on the test split, from the released checkpoint, and
# their ceiling. Knobs are swept; those with a target are chosen on the validation split. EXPRUNE_DATA_DIR names the data.
#   bash results/make/beyond.sh gnn        (or gnn_80, opt, vgg11_bn, vgg11_bn_paper, resnet18, vgg11_bn_static)
set -euo pipefail
. "$(dirname "$0")/networks.sh"
stages=() first=()
if [ "$network" = vgg11_bn_static ]; then
    stages=("exprune.stages=[8,16,24,32,48,64,96,128,192,256]") # a neuron has 20 to 80 terms left
    first=(exprune.n=8)
fi
sweep=multirun/beyond_$network # what is in it from an interrupted run is not measured again

run() { # NAME OVERRIDE...
    [ ! -e "$sweep/$1/done" ] || return 0
    python evaluate.py -m "${settings[@]}" logger=none hydra.sweep.dir="$sweep/$1" "${@:2}"
    touch "$sweep/$1/done"
}
run oracle exprune=oracle "${first[@]}"
layer=("${stages[@]}" exprune.order=layer)
run calibrated exprune=calibrated "${layer[@]}" exprune.tau=0.01,0.02,0.05,0.1,0.2
run calibrated-chosen exprune=calibrated "${layer[@]}" exprune.target_drop=0.1,1
run optimal exprune=optimal "${layer[@]}" exprune.target_drop=0.1,0.5,1
run optimal-neuron exprune=optimal "${stages[@]}" exprune.order=neuron exprune.target_drop=0.1,1
name=results/${network}/beyond
python -m exprune.lab.fronts.pareto "$sweep" --csv "$name.csv" --plot "$name.png"
rm -r "$sweep"
