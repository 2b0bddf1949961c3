// The harness itself: poison is NaN, a write outside is noticed.
#include "harness.h"

namespace dsv3::cuda::testing {
namespace {

__global__ void write_at(float* p, int64_t i) { p[i] = 1.0f; }

TEST(CudaHarness, PoisonIsNanAndGuardsCatchAStrayWrite) {
  DSV3_NEEDS_GPU();
  Guarded<float> buffer(100);
  EXPECT_TRUE(std::isnan(buffer.download()[99]));
  write_at<<<1, 1>>>(buffer.get(), 99);
  expect_synced();
  EXPECT_TRUE(buffer.guards_intact());
  write_at<<<1, 1>>>(buffer.get(), 100);
  expect_synced();
  EXPECT_FALSE(buffer.guards_intact());
}

TEST(CudaHarness, ErrorSeesOneBrokenRow) {
  const std::vector<float> got = {1, 2, 3, 4, 5, 6.6f};
  const std::vector<double> want = {1, 2, 3, 4, 5, 6};
  const Error error = relative_l2(got, want, 2);
  EXPECT_EQ(error.worst, 2);
  EXPECT_GT(error.worst_row, error.all);
  EXPECT_EQ(relative_l2({NAN, 1}, std::vector<double>{1, 1}, 2).all, INFINITY);
}

}  // namespace
}  // namespace dsv3::cuda::testing
