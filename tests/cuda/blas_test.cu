// cuBLASLt behind our structs against float64: every layout that the server uses, one plan for each shape, capture in a graph.
#include "kernels/cuda/gemm/blas.h"

#include <array>
#include <memory>

#include "simple_reference.cuh"

namespace dsv3::cuda {
namespace {

using namespace testing;

class CudaBlas : public ::testing::Test {
 protected:
  void SetUp() override {
    DSV3_NEEDS_GPU();
    workspace_ = std::make_unique<Guarded<uint8_t>>(static_cast<size_t>(Blas::kWorkspaceBytes));
    auto blas = Blas::create(workspace_->get());
    ASSERT_TRUE(blas.ok()) << blas.status().message();
    blas_ = std::move(blas).value();
  }
  void TearDown() override {
    if (workspace_ != nullptr) EXPECT_TRUE(workspace_->guards_intact());
  }
  std::unique_ptr<Guarded<uint8_t>> workspace_;
  std::unique_ptr<Blas> blas_;
};

template <class T, class Matrix>
void check_dense(Blas& blas, int64_t m, int64_t n, int64_t k) {
  const std::string name = "m " + std::to_string(m) + ", n " + std::to_string(n) + ", k " + std::to_string(k);
  const int64_t x_stride = k + 8, y_stride = n + 8;
  const Guarded<Bf16> x(random_bf16(m * x_stride, 1)), w(random_bf16(n * k, 2, 0.05f));
  Guarded<T> y(static_cast<size_t>(m * y_stride));
  const Bf16Matrix xs{x.get(), m, k, x_stride};
  const Bf16Weight ws{w.get(), n, k, 1};
  std::vector<T> first;
  for (int time = 0; time < 2; ++time) {  // the second time with the plan of the first
    y.poison();
    EXPECT_OK(blas.gemm(xs, ws, Matrix{y.get(), m, n, y_stride}, nullptr));
    expect_synced();
    const std::vector<T> got = rows_of(y.download(), m, n, y_stride, name);
    if (time == 1) EXPECT_TRUE(same_bits(first, got)) << name << ": other bits the second time";
    first = got;
  }
  if (m > 0)
    expect_close(as_floats(first), reference_product(Bf16View{x.get(), x_stride}, Bf16View{w.get(), k}, m, n, k), n,
                 std::is_same_v<T, float>, name);
  EXPECT_TRUE(y.guards_intact()) << name;
}

TEST_F(CudaBlas, Bf16) {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{0, 64, 64}, {1, 256, 7168}, {3, 72, 136}, {64, 512, 512}, {65, 136, 1000}, {130, 264, 256}}) {
    check_dense<Bf16, Bf16Matrix>(*blas_, m, n, k);
    check_dense<float, F32Matrix>(*blas_, m, n, k);
  }
}

TEST_F(CudaBlas, HeadProduct) {
  struct Case {
    int64_t rows, heads, n, k;
    bool transposed;
  };
  for (const Case& c : {Case{1, 16, 512, 128, true}, Case{66, 3, 512, 128, true}, Case{1, 16, 128, 512, false},
                        Case{66, 3, 128, 512, false}, Case{0, 2, 128, 512, false}}) {
    // W_UK and W_UV of a head lie one behind the other.
    check_head_product({c.rows, c.heads, c.n, c.k, c.transposed, 8, c.transposed ? c.n : c.k, 256 * 512},
                       [&](const HeadProduct& product) { return blas_->head_product(product, nullptr); });
  }
}

/// Scales of W: rows padded to 4 columns, as cuBLASLt reads them.
std::vector<float> padded_scales(const std::vector<float>& scales, int64_t rows, int64_t cols) {
  const int64_t stride = (cols + 3) / 4 * 4;
  std::vector<float> padded(static_cast<size_t>(rows * stride), 0.0f);
  for (int64_t row = 0; row < rows; ++row) std::copy_n(scales.data() + row * cols, cols, padded.data() + row * stride);
  return padded;
}

TEST_F(CudaBlas, Fp8Block) {
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 256, 512}, {8, 256, 512}, {16, 576, 896}, {64, 2112, 1024}, {132, 512, 7168}}) {
    const std::string name = "m " + std::to_string(m) + ", n " + std::to_string(n) + ", k " + std::to_string(k);
    const int64_t bands = (n + 127) / 128, groups = k / 128;
    const std::vector<float> scales = random_scales(bands * groups, 4);
    const Guarded<uint8_t> x(random_e4m3(m * k, 1)), w(random_e4m3(n * k, 2));
    const Guarded<float> x_scales(random_scales(groups * m, 3)), w_scales(scales), w_padded(padded_scales(scales, bands, groups));
    const Guarded<Bf16> y(static_cast<size_t>(m * n));
    const Status status = blas_->fp8_block_gemm(Fp8Rows{x.get(), x_scales.get(), m, k, m}, Fp8Weight{w.get(), w_scales.get(), n, k, 1},
                                                w_padded.get(), Bf16Matrix{y.get(), m, n, n}, nullptr);
    expect_synced();
    if (status.code() == Code::kUnsupported) {
      EXPECT_TRUE(m == 1 || k % 512 != 0) << name << ": " << status.message();
      continue;
    }
    ASSERT_TRUE(status.ok()) << name << ": " << status.message();
    const Fp8RowsView xs{x.get(), x_scales.get(), k, m};
    expect_close(from_bf16(y.download()), reference_product(xs, Fp8WeightView{w.get(), w_scales.get(), k}, m, n, k), n, false, name);
    EXPECT_TRUE(y.guards_intact()) << name;
  }
}

TEST_F(CudaBlas, RunsInAGraph) {
  const int64_t m = 16, n = 256, k = 512;
  const Guarded<Bf16> x(random_bf16(m * k, 1)), w(random_bf16(n * k, 2, 0.05f));
  Guarded<float> y(static_cast<size_t>(m * n));
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), cudaSuccess);
  EXPECT_OK(blas_->gemm(Bf16Matrix{x.get(), m, k, k}, Bf16Weight{w.get(), n, k, 1}, F32Matrix{y.get(), m, n, n}, stream));
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
  expect_synced();
  expect_close(y.download(), reference_product(Bf16View{x.get(), k}, Bf16View{w.get(), k}, m, n, k), n, true, "graph");
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST(CudaBlasCreate, RefusesAWorkspaceThatIsNotAligned) {
  EXPECT_EQ(Blas::create(nullptr).status().code(), Code::kInternal);
  EXPECT_EQ(Blas::create(reinterpret_cast<void*>(uintptr_t{4096 + 16})).status().code(), Code::kInternal);
}

}  // namespace
}  // namespace dsv3::cuda
