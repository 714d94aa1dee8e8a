#!/usr/bin/env bash
# Makes NETWORK/fronts.png for every network: all its tables in one plot.
#   bash results/make/fronts.sh
set -euo pipefail
cd "$(dirname "$0")/.."
plot() { # NETWORK: its tables, where they are there
    local network=$1 table tables=()
    for table in one_tau search beyond input_order; do
        [ ! -e "$network/$table.csv" ] || tables+=("$network/$table.csv")
    done
    python -m exprune.lab.fronts.pareto "${tables[@]}" --plot "${network}/fronts.png" > /dev/null
}
plot gnn
plot vgg11_bn
plot resnet18
plot vgg11_bn_static
plot opt
