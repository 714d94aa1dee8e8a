#!/usr/bin/env bash
# Makes NETWORK_input_order.csv: optimal stopping with the terms in the order of each input, without and with predictions,
# on the test split, from the released checkpoint; lam is chosen on the validation split. EXPRUNE_DATA_DIR names the data.
#   bash results/input_order.sh gnn        (or opt, vgg11_bn, resnet18, vgg11_bn_static)
set -euo pipefail
. "$(dirname "$0")/networks.sh"
sweep=multirun/input_order_$network # what is in it from an interrupted run is not measured again
for predict in false true; do
    [ ! -e "$sweep/$predict/done" ] || continue
    python evaluate.py -m "${settings[@]}" logger=none hydra.sweep.dir="$sweep/$predict" exprune=optimal exprune.order=input \
        "exprune.stages=[8,16,32,64,128,192,256]" exprune.predict=$predict exprune.target_drop=0.1,1
    touch "$sweep/$predict/done"
done
python -m exprune.lab.fronts.pareto "$sweep" --csv "results/${network}_input_order.csv"
rm -r "$sweep"
