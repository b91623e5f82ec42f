#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than 10 minutes: build, tests, memcheck, racecheck, timings, profile.
#
#   benchmarks/gpu_check.sh
#
# BUILD=0 takes the extension as it is. Needs PyTorch for CUDA, nvcc, ninja, pybind11 and pytest; what else is missing is
# named, and the steps that need it are left out. No network. chain.json, elementwise.json, profile.txt, summary.txt and
# log.txt, all that the steps printed, go to $OUT, or benchmarks/output; a summary is printed last. A step that fails
# doesn't keep those after it from running.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
if ! $PYTHON -c 'import torch' 2>/dev/null; then
    echo "gpu_check: $PYTHON has no torch: name one that has with PYTHON=..."
    exit 1
fi
if ! gpu=$($PYTHON -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null); then
    echo "gpu_check: no CUDA device: torch.cuda.is_available() is False for $PYTHON"
    exit 1
fi

export OUT=${OUT:-benchmarks/output}
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} # nvcc on the PATH may be a wrapper elsewhere
export PATH=$CUDA_HOME/bin:$PATH
export TAYLORDERIV_CUDA=1 PYTHONPATH=$PWD PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$($PYTHON -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
export TORCH_CUDA_ARCH_LIST

seconds=${SECONDS_AT_MOST:-570} # for all steps
failed=0
summary=()
: >"$OUT/log.txt"
: >"$OUT/summary.txt"

has() { command -v "$1" >/dev/null; }
imports() { $PYTHON -c "import $1" 2>/dev/null; }
missing=()
for tool in nvcc compute-sanitizer ncu ninja; do has $tool || missing+=("$tool"); done
for module in pybind11 pytest hypothesis mpmath jax; do imports $module || missing+=("python's $module"); done

note() { summary+=("$(printf '%-11s %-8s %4s s  %s' "$@")"); }

# step <name> <seconds at most> <command ...>: runs it, unless there is no time left, and says how it went.
step() {
    local name=$1 limit=$2 start=$SECONDS status result=passed
    shift 2
    if ((SECONDS + limit > seconds)); then limit=$((seconds - SECONDS)); fi
    if ((limit < 5)); then
        note "$name" "left out" 0 "no time left"
        failed=1
        return 1
    fi
    echo "== $name" | tee -a "$OUT/log.txt"
    timeout -k 5 "$limit" "$@" >"$OUT/step.txt" 2>&1
    status=$?
    cat "$OUT/step.txt" >>"$OUT/log.txt"
    ((status == 0)) || result=FAILED
    ((status == 124 || status == 137)) && result="TOO LONG"
    if [[ $result != passed ]]; then
        failed=1
        tail -n 25 "$OUT/step.txt" | cut -c1-400
    fi
    note "$name" "$result" $((SECONDS - start)) "$(grep -v '^ *$' "$OUT/step.txt" | tail -n 1 | sed "s#$OUT/##" | cut -c1-110)"
    [[ $result == passed ]]
}

# The same if a tool is there.
step_with() {
    local tool=$1
    shift
    if has "$tool"; then
        step "$@"
    else
        note "$1" "left out" 0 "no $tool"
    fi
}

# What the last step printed for people, without progress and warnings.
tables() { grep -E '^(\||$|not measured|relative error)|torch [0-9.]+.*\. (Micro|Share)' "$OUT/step.txt" >>"$OUT/summary.txt"; }

workers=()
imports xdist && workers=(-n 12)
tests=("$PYTHON" -m pytest -q -p no:cacheprovider -p no:benchmark tests/test_cuda.py)
elements="(unary_kernels or singular) and (sigmoid or log1p or sinc) and float32 or products or order_40"
chains="(test_chains_agree or saved_layers) and (33x17 or 3x5x2 or 600x16 or 20x33 or 17x48)"

# AVX-512's kernels are no part of what is checked, and take long to compile.
if [[ ${BUILD:-1} == 0 ]] || TAYLORDERIV_AVX512=0 step build 400 "$PYTHON" setup.py build_ext --inplace; then
    # The short ones first: they say whether it works at all.
    step tests 110 "${tests[@]}" "${workers[@]}"
    step elementwise 45 "$PYTHON" benchmarks/elementwise_cuda.py "$OUT/elementwise.json" && tables
    step_with compute-sanitizer memcheck 70 \
        compute-sanitizer --tool memcheck --error-exitcode 1 "${tests[@]}" -k "($elements or $chains) and not float16 and not bfloat16"
    step_with compute-sanitizer racecheck 70 \
        compute-sanitizer --tool racecheck --error-exitcode 1 "${tests[@]}" -k "$chains and float32 and not 600x16"
    step profile 30 "$PYTHON" -W ignore benchmarks/chain_cuda.py --profile && cp "$OUT/step.txt" "$OUT/profile.txt"
    step_with ncu counters 60 ncu --clock-control none --kernel-name 'regex:chain_(forward|backward)' --launch-skip 6 \
        --launch-count 2 --set full --force-overwrite --export "$OUT/counters" \
        "$PYTHON" benchmarks/chain_cuda.py --profile &&
        ncu --import "$OUT/counters.ncu-rep" --page details >>"$OUT/profile.txt"
    # It has a lot to compile for the competitors, and takes what time is left.
    left=$((seconds - SECONDS))
    step chain $left "$PYTHON" benchmarks/chain_cuda.py "$OUT/chain.json" --seconds $((left > 160 ? left - 100 : 60)) && tables
fi
rm -f "$OUT/step.txt"

{
    printf '\n%s, compiled for %s\n' "$gpu" "$TORCH_CUDA_ARCH_LIST"
    ((${#missing[@]} == 0)) || printf 'missing: %s\n' "$(IFS=,; echo "${missing[*]}")"
    printf '%s\n' "${summary[@]}"
} >>"$OUT/summary.txt"
cat "$OUT/summary.txt"
exit $failed
