#!/usr/bin/env bash
# Makes decoding/NAME: what decoding takes on this machine, a processor of that name, which should do nothing else
# meanwhile. The prices are those of results/opt_wide/optimal.csv at a drop of 0.1 points, and of 1 point; the shares that
# OPT-1.3B's shape is given are the former's.
#   bash results/make/speed.sh epyc
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_WAIT_POLICY=passive
out=results/decoding/${1:?a name for the processor}
mkdir -p "$out"
network=(exprune.lam=1.334e-9)
python benchmarks/decode.py "${network[@]}" --rounds 12 --drop-tokens 5000 --json "$out/opt_wide_1.json"
python benchmarks/decode.py "${network[@]}" --rounds 12 --drop-tokens 0 --threads 2 --json "$out/opt_wide_2.json"
python benchmarks/decode.py "${network[@]}" --rounds 12 --drop-tokens 0 --dtype float16 --json "$out/opt_wide_3.json"
python benchmarks/decode.py exprune.lam=8.66e-9 --rounds 12 --drop-tokens 5000 --json "$out/opt_wide_4.json"
# As on a processor with AVX2 alone: torch, its libraries and numba are told to use nothing beyond.
ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES= \
    python benchmarks/decode.py "${network[@]}" --rounds 12 --drop-tokens 0 --json "$out/opt_wide_5.json"
python benchmarks/decode.py --shape opt-1.3b --read 0.34 --positive 0.12 --head-read 0.28 --rounds 6 --tokens 16 --json "$out/shape.json"
python benchmarks/ffn.py --hidden 1024 2048 --csv "$out/kernels.csv"
