// Embedding, gathered rows, zeros and sums: plain copies of 8 columns a thread.
#include <algorithm>

#include "norm.h"
#include "rows.cuh"

namespace dsv3::cuda {
namespace {

constexpr unsigned kThreads = 256;

/// out[r] = table[index[r] - first], zeros where that is outside of the table or there is no index at all.
template <class From, class To>
struct CopyParams {
  const int32_t* index;
  const From* table;
  To* out;
  int64_t first, table_rows, table_stride, out_stride;
  uint32_t rows, vectors;
};

template <class From, class To>
__global__ __launch_bounds__(kThreads) void copy_kernel(const __grid_constant__ CopyParams<From, To> p) {
  launch_dependents();
  wait_for_previous();
  const uint32_t at = blockIdx.x * kThreads + threadIdx.x;
  const uint32_t row = at / p.vectors, i = at - row * p.vectors;
  if (row >= p.rows) return;
  const int64_t from = p.index != nullptr ? p.index[row] - p.first : -1;
  VectorOf<From> value{};
  if (from >= 0 && from < p.table_rows) value = load_vector(p.table + from * p.table_stride + i * kVector);
  float v[8];
  unpack(value, v);
  store_vector(p.out + row * p.out_stride + i * kVector, v);  // from BF16 to BF16 this gives the same number back
}

struct AddParams {
  Bf16* a;
  const Bf16* b;
  int64_t a_stride, b_stride;
  uint32_t rows, vectors;
};

__global__ __launch_bounds__(kThreads) void add_kernel(const __grid_constant__ AddParams p) {
  launch_dependents();
  wait_for_previous();
  const uint32_t at = blockIdx.x * kThreads + threadIdx.x;
  const uint32_t row = at / p.vectors, i = at - row * p.vectors;
  if (row >= p.rows) return;
  Bf16* to = p.a + row * p.a_stride + i * kVector;
  float a[8], b[8];
  const uint4 left = load_vector(to), right = load_vector(p.b + row * p.b_stride + i * kVector);
  unpack_bf16(left, a);
  unpack_bf16(right, b);
#pragma unroll
  for (int j = 0; j < 8; ++j) a[j] += b[j];
  store_vector(to, a);
}

struct ZeroParams {
  float* x;
  int64_t count;
};

__global__ __launch_bounds__(kThreads) void zero_kernel(const __grid_constant__ ZeroParams p) {
  launch_dependents();
  wait_for_previous();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.count; i += step) p.x[i] = 0.0f;
}

Status shape_of(const char* name, int64_t rows, int64_t cols, LaunchShape* shape) {
  const int64_t total = rows * (cols / kVector);
  if (total >= int64_t{1} << 31) return wrong(name, std::to_string(rows) + " x " + std::to_string(cols) + ": too many");
  *shape = {dim3(static_cast<unsigned>((total + kThreads - 1) / kThreads)), dim3(kThreads)};
  return {};
}

template <class Table, class Out>
Status copy(const char* name, const int32_t* index, const Table& table, int64_t first, const Out& out, Stream stream) {
  if (out.rows == 0) return {};
  DSV3_TRY(check_matrix(name, "out", out, out.rows, out.cols));
  if (index != nullptr && table.rows > 0) DSV3_TRY(check_matrix(name, "table", table, table.rows, out.cols));
  LaunchShape shape;
  DSV3_TRY(shape_of(name, out.rows, out.cols, &shape));
  using From = std::remove_pointer_t<decltype(table.data)>;
  using To = std::remove_pointer_t<decltype(out.data)>;
  const CopyParams<From, To> p{index,
                               table.data,
                               out.data,
                               first,
                               table.rows,
                               table.stride,
                               out.stride,
                               static_cast<uint32_t>(out.rows),
                               static_cast<uint32_t>(out.cols / kVector)};
  return launch(name, copy_kernel<From, To>, shape, stream, p);
}

}  // namespace

Status embed(const int32_t* tokens, const Bf16Matrix& table, int64_t first_id, const F32Matrix& out, Stream stream) {
  if (out.rows > 0 && tokens == nullptr) return wrong("embed", "tokens is null");
  return copy("embed", tokens, table, first_id, out, stream);
}
Status embed(const int32_t* tokens, const Bf16Matrix& table, int64_t first_id, const Bf16Matrix& out, Stream stream) {
  if (out.rows > 0 && tokens == nullptr) return wrong("embed", "tokens is null");
  return copy("embed", tokens, table, first_id, out, stream);
}

Status gather_rows(const F32Matrix& x, const int32_t* rows_wanted, const Bf16Matrix& out, Stream stream) {
  if (out.rows > 0 && rows_wanted == nullptr) return wrong("gather_rows", "rows_wanted is null");
  return copy("gather_rows", rows_wanted, x, 0, out, stream);
}
Status gather_rows(const Bf16Matrix& x, const int32_t* rows_wanted, const Bf16Matrix& out, Stream stream) {
  if (out.rows > 0 && rows_wanted == nullptr) return wrong("gather_rows", "rows_wanted is null");
  return copy("gather_rows", rows_wanted, x, 0, out, stream);
}

Status zero_rows(const Bf16Matrix& x, Stream stream) {
  return copy("zero_rows", nullptr, Bf16Matrix{}, 0, x, stream);
}

Status add_rows(const Bf16Matrix& a, const Bf16Matrix& b, Stream stream) {
  if (a.rows == 0) return {};
  DSV3_TRY(check_matrix("add_rows", "a", a, a.rows, a.cols));
  DSV3_TRY(check_matrix("add_rows", "b", b, a.rows, a.cols));
  LaunchShape shape;
  DSV3_TRY(shape_of("add_rows", a.rows, a.cols, &shape));
  const AddParams p{a.data, b.data, a.stride, b.stride, static_cast<uint32_t>(a.rows), static_cast<uint32_t>(a.cols / kVector)};
  return launch("add_rows", add_kernel, shape, stream, p);
}

Status zero_floats(float* x, int64_t count, Stream stream) {
  if (count == 0) return {};
  if (x == nullptr || count < 0) return wrong("zero_floats", "x is null or its count negative");
  const int64_t blocks = std::min<int64_t>((count + kThreads - 1) / kThreads, 2048);
  return launch("zero_floats", zero_kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, stream, ZeroParams{x, count});
}

}  // namespace dsv3::cuda
