#!/usr/bin/env bash
# Makes gnn_molhiv.csv and gnn_molhiv.png: the paper's GCN on the test split of ogbg-molhiv, from the released
# checkpoint. Both heuristics at every tau below, first with the paper's four sites, then with all five.
#   bash results/gnn_molhiv.sh        (about 15 minutes on 2 cores)
set -euo pipefail
cd "$(dirname "$0")/.."
sweep=$(mktemp -d)
trap 'rm -rf "$sweep"' EXIT
stats=0.01,0.02,0.05,0.075,0.1,0.125,0.15,0.2,0.25,0.3,0.4,0.5
threshold=-0.3,-0.2,-0.15,-0.1,-0.075,-0.05,-0.04,-0.03,-0.02,-0.01,-0.005,0
for sites in '[convolutions.[0-3].linear]' null; do
    for heuristic in stats_test threshold; do
        taus=$stats
        [ "$heuristic" = threshold ] && taus=$threshold
        python evaluate.py -m experiment=paper/gnn_molhiv exprune="$heuristic" exprune.tau="$taus" \
            "exprune.sites=${sites//convolutions.\[0-3\].linear/\'convolutions.[0-3].linear\'}" \
            logger=none hydra.sweep.dir="$sweep/$heuristic-$([ "$sites" = null ] && echo five || echo four)"
    done
done
python -m exprune.lab.pareto "$sweep" --csv results/gnn_molhiv.csv --plot results/gnn_molhiv.png
