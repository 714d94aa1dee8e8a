#!/usr/bin/env bash
# Makes NETWORK/search.csv and .png (the fronts on the test split), and NETWORK/search_HEURISTIC_trials.csv and _front.csv: one
# tau per site, searched on the validation split for Threshold and StatsTest, from the released checkpoint. The points of
# the front are chosen on validation. A search that is interrupted goes on. EXPRUNE_DATA_DIR names the data.
#   bash results/make/search.sh gnn        (or opt, vgg11_bn, resnet18, vgg11_bn_static; gnn_80 and vgg11_bn_paper: trained by
#                                      the paper's recipe; gnn_2000 and vgg11_bn_2000: as many trials as the paper's)
set -euo pipefail
name=${1:-}
set -- "${name%_2000}"
. "$(dirname "$0")/networks.sh"
trials=200
case $network in # what a trial measures, and how many points of the front are measured on test
    gnn) [ "$name" = gnn ] || settings+=(search.limit=1000) ;; # graphs
    opt) settings+=(search.limit=128 search.front=8) ;; # texts of 256 tokens
    vgg11_bn | vgg11_bn_paper) settings+=(search.limit=1000 search.front=8) ;;
    vgg11_bn_static) settings+=(search.limit=1000 search.front=6) ;;
    resnet18) settings+=(search.limit=1000 search.front=6) trials=100 ;;
esac
[ "$name" = "$network" ] || trials=2000
work=multirun/search_$name # what is in it from an interrupted run is not measured again
for heuristic in threshold stats_test; do
    [ -e "$work/$heuristic/front.csv" ] || # its last file
        python evaluate.py "${settings[@]}" search=tpe search.trials=$trials exprune="$heuristic" logger=none hydra.run.dir="$work/$heuristic"
    for table in trials front; do
        cp "$work/$heuristic/$table.csv" "results/${name}/search_${heuristic}_$table.csv"
    done
done
python -m exprune.lab.fronts.pareto "$work"/*/test --csv "results/${name}/search.csv" --plot "results/${name}/search.png"
rm -r "$work"
