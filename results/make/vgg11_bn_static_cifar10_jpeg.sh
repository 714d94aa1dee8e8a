#!/usr/bin/env bash
# Makes vgg11_bn_static/one_tau.csv and .png: VGG11-BN after magnitude pruning at three sparsities, on the test images
# of CIFAR-10 (JPEG mirror), from the released checkpoints; both heuristics at every tau below, one tau for all sites.
# EXPRUNE_DATA_DIR names the data.
#   bash results/make/vgg11_bn_static_cifar10_jpeg.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
sweep=$(mktemp -d)
trap 'rm -rf "$sweep"' EXIT

run() { # NAME OVERRIDE...
    python evaluate.py -m model=vgg11_bn data=cifar10_jpeg static=magnitude static.sparsity=0.9,0.95,0.98 logger=none \
        hydra.sweep.dir="$sweep/$1" "${@:2}"
}
run stats exprune=stats_test exprune.tau=0.01,0.02,0.05,0.1,0.15,0.2,0.25,0.3,0.4,0.5
run threshold exprune=threshold exprune.tau=-0.03,-0.02,-0.015,-0.01,-0.0075,-0.005,-0.0035,-0.002,-0.001,0
name=results/vgg11_bn_static/one_tau
python -m exprune.lab.fronts.pareto "$sweep" --csv "$name.csv" --plot "$name.png"
