#!/usr/bin/env bash
# Makes MODEL/one_tau.csv and MODEL/one_tau.png: a network on the test images of CIFAR-10 (JPEG mirror), from the
# released checkpoint; both heuristics at every tau below, one tau for all sites. EXPRUNE_DATA_DIR names the data.
#   bash results/make/cifar10_jpeg.sh vgg11_bn
#   bash results/make/cifar10_jpeg.sh resnet18
set -euo pipefail
model=${1:?vgg11_bn or resnet18}
case $model in # Threshold's scale is that of the network's pre-activations
    vgg11_bn) threshold=-0.05,-0.035,-0.025,-0.02,-0.015,-0.01,-0.007,-0.005,-0.003,-0.001,0 ;;
    resnet18) threshold=-0.1,-0.05,-0.035,-0.025,-0.015,-0.01,-0.006,-0.003,-0.001,0 ;;
    *) echo "error: $model: vgg11_bn or resnet18" >&2; exit 1 ;;
esac
cd "$(dirname "$0")/../.."
sweep=$(mktemp -d)
trap 'rm -rf "$sweep"' EXIT

run() { # NAME OVERRIDE...
    python evaluate.py -m model="$model" data=cifar10_jpeg logger=none hydra.sweep.dir="$sweep/$1" "${@:2}"
}
run stats exprune=stats_test exprune.tau=0,0.01,0.02,0.05,0.1,0.15,0.2,0.25,0.3,0.4,0.5
run threshold exprune=threshold exprune.tau="$threshold"
name=results/$model/one_tau
python -m exprune.lab.fronts.pareto "$sweep" --csv "$name.csv" --plot "$name.png"
