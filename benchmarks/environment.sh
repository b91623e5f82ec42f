#!/usr/bin/env bash
# Builds an environment with taylorderiv and everything it's compared with, in .venv-bench or the folder given:
#
#     benchmarks/environment.sh [FOLDER]
#     .venv-bench/bin/python benchmarks/run.py
#
# PYTHON chooses the interpreter; jet-for-pytorch needs 3.12 or newer and is left out with an older one.
# TORCH chooses the torch, as for make.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-.venv-bench}
for python in ${PYTHON:-python3.12 python3.13 python3}; do
    "$python" -c '' 2>/dev/null && break
done
torch=${TORCH:-torch==2.13.0}

"$python" -m venv "$folder"
install() { "$folder/bin/python" -m pip --disable-pip-version-check install --quiet "$@"; }

# torch comes first and alone: whatever is installed later is compiled against it and must not replace it.
install "$torch"
install 'setuptools>=77' wheel ninja 'pybind11>=2.13'
echo "Installing taylorderiv; this compiles its kernels, for some minutes."
TAYLORDERIV_CUDA=0 install --no-build-isolation '.[bench]'
install -r benchmarks/requirements.txt
"$folder/bin/python" -m pip check
