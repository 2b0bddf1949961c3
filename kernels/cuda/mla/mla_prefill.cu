// Prefill attention: for now the simple kernel.
#include "mla_prefill.cuh"

namespace dsv3::cuda {

Status mla_prefill(const MlaPrefill& p, Stream stream) { return simple_mla_prefill(p, stream); }

}  // namespace dsv3::cuda
