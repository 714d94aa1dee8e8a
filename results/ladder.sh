#!/usr/bin/env bash
# Makes exchangeability/NETWORK_ladder.csv: the steps of the ladder (docs/exchangeability.md) that no other table has, on
# the test split, from the released checkpoint; knobs are chosen on the validation split, one for all sites.
#   bash results/ladder.sh gnn        (or opt, vgg11_bn, resnet18)
set -euo pipefail
. "$(dirname "$0")/networks.sh"
sweep=multirun/ladder_$network # what is in it from an interrupted run is not measured again

run() { # NAME OVERRIDE...
    [ ! -e "$sweep/$1/done" ] || return 0
    python evaluate.py -m "${settings[@]}" logger=none hydra.sweep.dir="$sweep/$1" exprune.target_drop=0.1,1 "${@:2}"
    touch "$sweep/$1/done"
}
run one-tau exprune=stats_test exprune.tau=null
run finite exprune=stats_test exprune.tau=null exprune.finite_population=true
run line exprune=calibrated exprune.order=model 'exprune.stages=[32]'
run loss exprune=optimal exprune.order=model 'exprune.stages=[32]'
run stages exprune=optimal exprune.order=model 'exprune.stages=[32,64,128,192,256]'
python -m exprune.lab.fronts.pareto "$sweep" --csv "results/exchangeability/${network}_ladder.csv"
rm -r "$sweep"
