// Registers the CUDA implementations of the ops.
#include "backend.h"
#include "chain_backend.h"

STABLE_TORCH_LIBRARY_IMPL(taylorderiv, CUDA, m) {
  taylorderiv::implement_ops<taylorderiv::Cuda>(m);
  taylorderiv::implement_chain_ops(m);
}
