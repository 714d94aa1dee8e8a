#!/usr/bin/env bash
# Makes NETWORK_search.csv and .png (the fronts on the test split), and NETWORK_search_HEURISTIC_trials.csv and _front.csv: one
# tau per site, searched on the validation split for Threshold and StatsTest, from the released checkpoint. The points of
# the front are chosen on validation. A search that is interrupted goes on. EXPRUNE_DATA_DIR names the data.
#   bash results/search.sh gnn        (or opt, vgg11_bn, resnet18, vgg11_bn_static; gnn_80 and vgg11_bn_paper: trained by
#                                      the paper's recipe; gnn_2000 and vgg11_bn_2000: as many trials as the paper's)
set -euo pipefail
known="gnn, gnn_80, gnn_2000, opt, vgg11_bn, vgg11_bn_paper, vgg11_bn_2000, resnet18 or vgg11_bn_static"
network=${1:?$known}
images=(data=cifar10_jpeg search.limit=1000)
case $network in
    gnn) settings=(model=gnn data=ogbg_molhiv search.trials=200) ;;
    gnn_80) settings=(model=gnn data=ogbg_molhiv model.epochs=80 search.trials=200) ;;
    gnn_2000) settings=(model=gnn data=ogbg_molhiv search.trials=2000 search.limit=1000) ;; # graphs
    opt) settings=(model=opt search.trials=200 search.limit=128 search.front=8) ;; # texts of 256 tokens
    vgg11_bn) settings=(model=vgg11_bn "${images[@]}" search.trials=200 search.front=8) ;;
    vgg11_bn_paper) settings=(experiment=paper/vgg11_bn_cifar10 "${images[@]}" search.trials=200 search.front=8) ;;
    vgg11_bn_2000) settings=(model=vgg11_bn "${images[@]}" search.trials=2000 search.front=8) ;;
    vgg11_bn_static) settings=(model=vgg11_bn static=magnitude static.sparsity=0.98 "${images[@]}" search.trials=200 search.front=6) ;;
    resnet18) settings=(model=resnet18 "${images[@]}" search.trials=100 search.front=6) ;;
    *) echo "error: $network: $known" >&2; exit 1 ;;
esac
cd "$(dirname "$0")/.."
work=multirun/search_$network # what is in it from an interrupted run is not measured again
for heuristic in threshold stats_test; do
    [ -e "$work/$heuristic/front.csv" ] || # its last file
        python evaluate.py "${settings[@]}" search=tpe exprune="$heuristic" logger=none hydra.run.dir="$work/$heuristic"
    for table in trials front; do
        cp "$work/$heuristic/$table.csv" "results/${network}_search_${heuristic}_$table.csv"
    done
done
name=results/${network}_search
python -m exprune.lab.fronts.pareto "$work"/*/test --csv "$name.csv" --plot "$name.png"
rm -r "$work"
