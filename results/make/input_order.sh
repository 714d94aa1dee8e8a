#!/usr/bin/env bash
# Makes NETWORK/input_order.csv: optimal stopping with the terms in the order of each input, without and with predictions,
# and the calibrated risk, beside leaving out small inputs and the oracle of the sign, on the test split, from the
# released checkpoint; knobs are chosen on the validation split. EXPRUNE_DATA_DIR names the data.
#   bash results/make/input_order.sh gnn        (or gnn_80, opt, vgg11_bn, vgg11_bn_paper, resnet18, vgg11_bn_static)
set -euo pipefail
. "$(dirname "$0")/networks.sh"
sweep=multirun/input_order_$network # what is in it from an interrupted run is not measured again

run() { # NAME OVERRIDE...
    [ ! -e "$sweep/$1/done" ] || return 0
    python evaluate.py -m "${settings[@]}" logger=none hydra.sweep.dir="$sweep/$1" "${@:2}"
    touch "$sweep/$1/done"
}
optimal=(exprune=optimal exprune.order=input exprune.target_drop=0.1,1)
run zero "${optimal[@]}"
run calibrated exprune=calibrated exprune.order=input exprune.target_drop=0.1,1
run magnitude exprune=magnitude exprune.target_drop=0.1,1
run predicted "${optimal[@]}" exprune.predict=true
[ "$network" != opt ] || run all "${optimal[@]}" exprune.refine=2 exprune.predict=true exprune.scope=all head=dominance
run oracle exprune=oracle exprune.order=input exprune.n=8
python -m exprune.lab.fronts.pareto "$sweep" --csv "results/${network}/input_order.csv"
rm -r "$sweep"
