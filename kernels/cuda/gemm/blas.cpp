// Products through cuBLASLt. It thinks in columns: a row-major matrix is its transpose there, so y = x W^T becomes
// y^T [n, m] = op(W) [n, k] x^T [k, m] with W as operand A and x as operand B.
#include "blas.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>

namespace dsv3::cuda {
namespace {

Status blas_status(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  const Code code = status == CUBLAS_STATUS_NOT_SUPPORTED ? Code::kUnsupported : Code::kInternal;
  return {code, std::string(what) + ": " + cublasLtGetStatusString(status)};
}

/// An opaque object of cuBLASLt with its destructor.
template <class T, cublasStatus_t (*kDestroy)(T)>
struct Destroyer {
  void operator()(std::remove_pointer_t<T>* object) const { kDestroy(object); }
};
using Handle = std::unique_ptr<std::remove_pointer_t<cublasLtHandle_t>, Destroyer<cublasLtHandle_t, cublasLtDestroy>>;
using Operation = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulDesc_t>, Destroyer<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>>;
using Layout =
    std::unique_ptr<std::remove_pointer_t<cublasLtMatrixLayout_t>, Destroyer<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>>;
using Preference = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>,
                                   Destroyer<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>>;

enum class Kind : int64_t { kBf16, kBf16ToF32, kFp8 };

/// One product as cuBLASLt sees it. Strides in elements.
struct Problem {
  Kind kind = Kind::kBf16;
  bool w_by_k = false;  ///< W lies as [k][n]
  int64_t m = 0, n = 0, k = 0, heads = 1;
  int64_t x_row = 0, x_head = 0, w_row = 0, w_head = 0, y_row = 0, y_head = 0;
  const void* x = nullptr;
  const void* w = nullptr;
  void* y = nullptr;
  const float* x_scales = nullptr;
  const float* w_scales = nullptr;
};

/// The largest power of two, at most 256, that divides the address. cuBLASLt chooses kernels that need no more.
uint32_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

/// Everything that a plan depends on.
using Key = std::array<int64_t, 16>;
Key key_of(const Problem& p) {
  return {static_cast<int64_t>(p.kind),
          p.w_by_k,
          blas_bucket(p.m),
          p.n,
          p.k,
          p.heads,
          p.x_row,
          p.x_head,
          p.w_row,
          p.w_head,
          p.y_row,
          p.y_head,
          alignment_of(p.x),
          alignment_of(p.w),
          alignment_of(p.y),
          0};
}
struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const int64_t value : key) {
      hash = (hash ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 29;
    }
    return static_cast<size_t>(hash);
  }
};

struct Plan {
  Operation operation;
  Layout a, b, d;
  cublasLtMatmulAlgo_t algo{};
  size_t workspace_bytes = 0;
  Status unsupported;  ///< not ok: cuBLASLt has no kernel; remembered, so that nobody asks again
};

template <class T>
Status set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  return blas_status(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)), "cublasLtMatmulDescSetAttribute");
}
template <class T>
Status set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  return blas_status(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
                     "cublasLtMatmulPreferenceSetAttribute");
}

/// A column-major matrix, `heads` of them.
Result<Layout> make_layout(cudaDataType_t type, int64_t rows, int64_t cols, int64_t stride, int64_t heads, int64_t head_stride) {
  cublasLtMatrixLayout_t raw = nullptr;
  DSV3_TRY(blas_status(cublasLtMatrixLayoutCreate(&raw, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), stride),
                       "cublasLtMatrixLayoutCreate"));
  Layout layout(raw);
  if (heads > 1) {
    const auto count = static_cast<int32_t>(heads);
    DSV3_TRY(blas_status(cublasLtMatrixLayoutSetAttribute(raw, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)), "batch count"));
    DSV3_TRY(
        blas_status(cublasLtMatrixLayoutSetAttribute(raw, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &head_stride, sizeof(head_stride)),
                    "batch stride"));
  }
  return layout;
}

/// Block scales of FP8 operands: pointers differ from call to call, modes do not.
Status set_scales(cublasLtMatmulDesc_t operation, const Problem& p) {
  DSV3_TRY(set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.w_scales));
  return set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.x_scales);
}
Status set_scale_modes(cublasLtMatmulDesc_t operation) {
#if CUBLAS_VERSION >= 120900
  DSV3_TRY(set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F));
  return set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
#else
  (void)operation;
  return {Code::kUnsupported, "cuBLASLt before CUDA 12.9 has no block scales"};
#endif
}

class LtBlas final : public Blas {
 public:
  LtBlas(Handle handle, void* workspace) : handle_(std::move(handle)), workspace_(workspace) {}

  Status gemm(const Bf16Matrix& x, const Bf16Weight& w, const Bf16Matrix& y, Stream stream) override {
    return dense(Kind::kBf16, x, w, y, stream);
  }
  Status gemm(const Bf16Matrix& x, const Bf16Weight& w, const F32Matrix& y, Stream stream) override {
    return dense(Kind::kBf16ToF32, x, w, y, stream);
  }

  Status head_product(const HeadProduct& h, Stream stream) override {
    Problem p;
    p.w_by_k = h.transposed;
    p.m = h.rows;
    p.n = h.n;
    p.k = h.k;
    p.heads = h.heads;
    p.x = h.x;
    p.x_row = h.x_row;
    p.x_head = h.x_head;
    p.w = h.w;
    p.w_row = h.w_stride;
    p.w_head = h.w_head;
    p.y = h.y;
    p.y_row = h.y_row;
    p.y_head = h.y_head;
    return run(p, stream);
  }

  Status fp8_block_gemm(const Fp8Rows& x, const Fp8Weight& w, const float* w_scales_padded, const Bf16Matrix& y, Stream stream) override {
    if (x.cols != w.k || y.cols != w.n || y.rows != x.rows) return {Code::kInternal, "fp8_block_gemm: sizes of x, W and y differ"};
    if (x.rows == 0) return {};
    // The scales of x have no stride in cuBLASLt: their rows follow each other without a gap.
    if (x.rows % 4 != 0 || x.scale_stride != x.rows) return {Code::kUnsupported, "fp8_block_gemm: rows must be a multiple of 4"};
    if (x.scales == nullptr || w_scales_padded == nullptr) return {Code::kInternal, "fp8_block_gemm: no scales"};
    Problem p;
    p.kind = Kind::kFp8;
    p.m = x.rows;
    p.n = w.n;
    p.k = w.k;
    p.x = x.data;
    p.x_row = x.cols;
    p.x_scales = x.scales;
    p.w = w.data;
    p.w_row = w.k;
    p.w_scales = w_scales_padded;
    p.y = y.data;
    p.y_row = y.stride;
    return run(p, stream);
  }

 private:
  template <class Matrix>
  Status dense(Kind kind, const Bf16Matrix& x, const Bf16Weight& w, const Matrix& y, Stream stream) {
    if (x.cols != w.k || y.cols != w.n || y.rows != x.rows) return {Code::kInternal, "Blas::gemm: sizes of x, W and y differ"};
    Problem p;
    p.kind = kind;
    p.m = x.rows;
    p.n = w.n;
    p.k = w.k;
    p.x = x.data;
    p.x_row = x.stride;
    p.w = w.data;
    p.w_row = w.k;
    p.y = y.data;
    p.y_row = y.stride;
    return run(p, stream);
  }

  Status run(const Problem& p, Stream stream) {
    if (p.m == 0 || p.heads == 0) return {};
    if (p.m < 0 || p.n <= 0 || p.k <= 0 || p.heads < 0) return {Code::kInternal, "Blas: a size is negative or zero"};
    if (p.x == nullptr || p.w == nullptr || p.y == nullptr) return {Code::kInternal, "Blas: no data"};
    const Key key = key_of(p);
    auto found = plans_.find(key);
    if (found == plans_.end()) {
      Problem largest = p;
      largest.m = blas_bucket(p.m);
      DSV3_ASSIGN(Plan plan, make_plan(largest));
      found = plans_.emplace(key, std::move(plan)).first;
    }
    const Plan& plan = found->second;
    DSV3_TRY(plan.unsupported);
    const auto columns = static_cast<uint64_t>(p.m);
    for (const auto* layout : {&plan.b, &plan.d}) {
      DSV3_TRY(blas_status(cublasLtMatrixLayoutSetAttribute(layout->get(), CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof(columns)), "columns"));
    }
    if (p.kind == Kind::kFp8) DSV3_TRY(set_scales(plan.operation.get(), p));
    const float one = 1.0f, zero = 0.0f;
    return blas_status(cublasLtMatmul(handle_.get(), plan.operation.get(), &one, p.w, plan.a.get(), p.x, plan.b.get(), &zero, p.y,
                                      plan.d.get(), p.y, plan.d.get(), &plan.algo, workspace_, plan.workspace_bytes, stream),
                       "cublasLtMatmul");
  }

  Result<Plan> make_plan(const Problem& p) {
    Plan plan;
    cublasLtMatmulDesc_t raw = nullptr;
    DSV3_TRY(blas_status(cublasLtMatmulDescCreate(&raw, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate"));
    plan.operation.reset(raw);
    DSV3_TRY(set(raw, CUBLASLT_MATMUL_DESC_TRANSA, p.w_by_k ? CUBLAS_OP_N : CUBLAS_OP_T));
    DSV3_TRY(set(raw, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N));
    if (p.kind == Kind::kFp8) {
      if (Status status = set_scale_modes(raw); !status.ok()) {
        plan.unsupported = std::move(status);
        return plan;
      }
      DSV3_TRY(set_scales(raw, p));
    }
    const cudaDataType_t in = p.kind == Kind::kFp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    const cudaDataType_t out = p.kind == Kind::kBf16ToF32 ? CUDA_R_32F : CUDA_R_16BF;
    DSV3_ASSIGN(plan.a, make_layout(in, p.w_by_k ? p.n : p.k, p.w_by_k ? p.k : p.n, p.w_row, p.heads, p.w_head));
    DSV3_ASSIGN(plan.b, make_layout(in, p.k, p.m, p.x_row, p.heads, p.x_head));
    DSV3_ASSIGN(plan.d, make_layout(out, p.n, p.m, p.y_row, p.heads, p.y_head));

    cublasLtMatmulPreference_t raw_preference = nullptr;
    DSV3_TRY(blas_status(cublasLtMatmulPreferenceCreate(&raw_preference), "cublasLtMatmulPreferenceCreate"));
    const Preference preference(raw_preference);
    DSV3_TRY(set(raw_preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes)));
    DSV3_TRY(set(raw_preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.w)));
    DSV3_TRY(set(raw_preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.x)));
    DSV3_TRY(set(raw_preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.y)));
    DSV3_TRY(set(raw_preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.y)));

    // Several candidates, the best by cuBLASLt's own model first; those it turns out not to support are passed over.
    std::array<cublasLtMatmulHeuristicResult_t, 8> candidates{};
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_.get(), raw, plan.a.get(), plan.b.get(), plan.d.get(), plan.d.get(), raw_preference,
                                       static_cast<int>(candidates.size()), candidates.data(), &count);
    if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED) {
      return blas_status(status, "cublasLtMatmulAlgoGetHeuristic");
    }
    const auto end = candidates.begin() + (status == CUBLAS_STATUS_SUCCESS ? count : 0);
    const auto best = std::find_if(candidates.begin(), end, [](const auto& candidate) { return candidate.state == CUBLAS_STATUS_SUCCESS; });
    if (best == end) {
      plan.unsupported =
          Status(Code::kUnsupported, "cuBLASLt has no kernel for m = " + std::to_string(p.m) + ", n = " + std::to_string(p.n) +
                                         ", k = " + std::to_string(p.k) + ", heads = " + std::to_string(p.heads));
      return plan;
    }
    plan.algo = best->algo;
    plan.workspace_bytes = best->workspaceSize;
    return plan;
  }

  Handle handle_;
  void* workspace_;
  std::unordered_map<Key, Plan, KeyHash> plans_;
};

}  // namespace

int64_t blas_bucket(int64_t rows) {
  constexpr int64_t kLargest = 4096;  // from here on the same kernel serves
  int64_t bucket = 1;
  while (bucket < rows && bucket < kLargest) bucket *= 2;
  return std::max(bucket, std::min(rows, kLargest));
}

Result<std::unique_ptr<Blas>> Blas::create(void* workspace) {
  if (workspace == nullptr || reinterpret_cast<uintptr_t>(workspace) % 256 != 0) {
    return Status(Code::kInternal, "Blas: the workspace is not on 256 bytes");
  }
  cublasLtHandle_t handle = nullptr;
  DSV3_TRY(blas_status(cublasLtCreate(&handle), "cublasLtCreate"));
  return std::unique_ptr<Blas>(std::make_unique<LtBlas>(Handle(handle), workspace));
}

}  // namespace dsv3::cuda
