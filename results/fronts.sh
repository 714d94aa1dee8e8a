#!/usr/bin/env bash
# Makes NETWORK_fronts.png for every network: all its tables beside this file in one plot.
#   bash results/fronts.sh
set -euo pipefail
cd "$(dirname "$0")"
plot() { # NETWORK TABLE: that and the others, where they are there
    local network=$1 table tables=()
    for table in "$2" "${network}_search" "${network}_beyond" "${network}_input_order"; do
        [ ! -e "$table.csv" ] || tables+=("$table.csv")
    done
    python -m exprune.lab.fronts.pareto "${tables[@]}" --plot "${network}_fronts.png" > /dev/null
}
plot gnn gnn_molhiv
plot vgg11_bn vgg11_bn_cifar10_jpeg
plot resnet18 resnet18_cifar10_jpeg
plot vgg11_bn_static vgg11_bn_static_cifar10_jpeg
plot opt opt_stdlib
