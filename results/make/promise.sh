#!/usr/bin/env bash
# Makes NETWORK/promise.csv and .png: how often a drop on unseen inputs exceeds the target, for a knob that is promised,
# one that keeps the target on validation, and one chosen on the data that are reported. Settings of optimal stopping are
# evaluated on the validation and the test split, from the released checkpoint; the rest is 500 random divisions of their
# inputs. EXPRUNE_DATA_DIR names the data.
#   bash results/make/promise.sh gnn        (or opt, vgg11_bn, resnet18, vgg11_bn_static)
set -euo pipefail
. "$(dirname "$0")/networks.sh"
case $network in # the knob's settings: half decades from next to nothing to far more than a point
    gnn) lams=(1e-12 2e-12 5e-12 1e-11 1.5e-11 2e-11 3e-11 4e-11 5e-11 7e-11 1e-10 1.5e-10 2e-10 5e-10) ;;
    opt) lams=(1e-9 3e-9 1e-8 2e-8 5e-8 1e-7 2e-7 3e-7 5e-7 1e-6) ;;
    vgg11_bn) lams=(3e-13 1e-12 3e-12 1e-11 2e-11 4e-11 8e-11 1.6e-10 3e-10 1e-9) ;;
    resnet18) lams=(1e-13 3e-13 1e-12 2e-12 4e-12 8e-12 1.6e-11 3e-11 1e-10) ;;
    vgg11_bn_static) lams=(1e-10 3e-10 1e-9 2e-9 5e-9 1e-8 2e-8 5e-8 1e-7) ;;
    *) echo "error: $network: gnn, opt, vgg11_bn, resnet18 or vgg11_bn_static" >&2; exit 1 ;;
esac
order=input # of the terms; the images' own order takes a simulation several times as long
[[ $network == gnn || $network == opt ]] || order=layer
sweep=multirun/promise_$network # what is in it from an interrupted run is not measured again
for split in valid test; do
    for lam in "${lams[@]}"; do
        run=$sweep/$split/$lam
        [ ! -e "$run/result.json" ] || continue
        python evaluate.py "${settings[@]}" exprune=optimal exprune.order="$order" exprune.lam="$lam" \
            split="$split" bootstrap=100 logger=none hydra.run.dir="$run"
    done
done
python results/make/promise.py "$sweep" "results/${network}/promise"
rm -r "$sweep"
