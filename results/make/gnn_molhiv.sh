#!/usr/bin/env bash
# Makes gnn/one_tau.csv and gnn/one_tau.png: the paper's GCN on the test split of ogbg-molhiv, from the released
# checkpoint; both heuristics at every tau below, with the paper's four sites and with all five.
#   bash results/make/gnn_molhiv.sh        (about 15 minutes on 2 cores)
set -euo pipefail
cd "$(dirname "$0")/../.."
sweep=$(mktemp -d)
trap 'rm -rf "$sweep"' EXIT

run() { # NAME OVERRIDE...
    python evaluate.py -m experiment=paper/gnn_molhiv logger=none hydra.sweep.dir="$sweep/$1" "${@:2}"
}
stats=exprune.tau=0,0.01,0.02,0.05,0.075,0.1,0.125,0.15,0.2,0.25,0.3,0.4,0.5
threshold=exprune.tau=-0.3,-0.2,-0.15,-0.1,-0.075,-0.05,-0.04,-0.03,-0.02,-0.01,-0.005,0
run stats-four exprune=stats_test "$stats"
run threshold-four exprune=threshold "$threshold"
run stats-five exprune=stats_test "$stats" exprune.sites=null
run threshold-five exprune=threshold "$threshold" exprune.sites=null
python -m exprune.lab.fronts.pareto "$sweep" --csv results/gnn/one_tau.csv --plot results/gnn/one_tau.png
