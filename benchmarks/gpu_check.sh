#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than 10 minutes: build, tests, memcheck, racecheck, timings.
#
#   benchmarks/gpu_check.sh
#
# Needs PyTorch for CUDA, nvcc, compute-sanitizer, pybind11, ninja, pytest, hypothesis and mpmath; no network. Logs, and
# the timings as JSON, go to $OUT; a summary is printed last. Fails if any step does; the steps after it run anyway.
set -uo pipefail
cd "$(dirname "$0")/.."

export OUT=${OUT:-benchmarks/results}
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} # nvcc on the PATH may be a wrapper elsewhere
export PATH=$CUDA_HOME/bin:$PATH
export TAYLORDERIV_CUDA=1 PYTHONPATH=$PWD PYTHONUNBUFFERED=1
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

capability=$($PYTHON -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}
workers=$($PYTHON -c 'import xdist' 2>/dev/null && echo "-n 6")

summary=()
failed=0

# step <name> <seconds at most> <command ...>
step() {
    local name=$1 limit=$2 start=$SECONDS result=passed
    shift 2
    echo "== $name"
    if ! timeout "$limit" "$@" >"$OUT/$name.log" 2>&1; then
        result=FAILED
        failed=1
        tail -n 40 "$OUT/$name.log"
    fi
    summary+=("$(printf '%-10s %-6s %4d s' "$name" "$result" $((SECONDS - start)))")
}

tests="$PYTHON -m pytest -q -p no:cacheprovider tests/test_cuda.py"
step build 300 $PYTHON setup.py build_ext --inplace
step tests 120 $tests $workers
elements="(unary_kernels or singular) and (sigmoid or log1p or sinc) and float32 or products or order_40"
chains="(test_chains_agree or saved_layers) and (33x17 or 3x5x2 or 600x16)"
step memcheck 80 compute-sanitizer --tool memcheck --error-exitcode 1 $tests -k "$elements or $chains"
step racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 1 $tests -k "$chains"
step chain 90 $PYTHON benchmarks/chain_cuda.py "$OUT/chain.json"
step elementwise 45 $PYTHON benchmarks/elementwise_cuda.py "$OUT/elementwise.json"

cat "$OUT/chain.log" "$OUT/elementwise.log"
printf '\n'
printf '%s\n' "${summary[@]}"
tail -n 1 "$OUT/tests.log"
exit $failed
