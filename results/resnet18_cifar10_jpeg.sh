#!/usr/bin/env bash
# Makes resnet18_cifar10_jpeg.csv and resnet18_cifar10_jpeg.png: ResNet18 on the test images of CIFAR-10 (JPEG mirror), from the
# released checkpoint; both heuristics at every tau below, one tau for all sites. EXPRUNE_DATA_DIR names the data.
#   bash results/resnet18_cifar10_jpeg.sh
set -euo pipefail
cd "$(dirname "$0")/.."
sweep=$(mktemp -d)
trap 'rm -rf "$sweep"' EXIT

run() { # NAME OVERRIDE...
    python evaluate.py -m model=resnet18 data=cifar10_jpeg logger=none hydra.sweep.dir="$sweep/$1" "${@:2}"
}
run stats exprune=stats_test exprune.tau=0,0.01,0.02,0.05,0.1,0.15,0.2,0.25,0.3,0.4,0.5
run threshold exprune=threshold exprune.tau=-0.1,-0.05,-0.035,-0.025,-0.015,-0.01,-0.006,-0.003,-0.001,0
python -m exprune.lab.pareto "$sweep" --csv results/resnet18_cifar10_jpeg.csv --plot results/resnet18_cifar10_jpeg.png
