// MLA decode against float64: ragged lengths, groups of several rows, both page formats, shuffled and poisoned pages.
#include "mla_decode_case.cuh"

namespace dsv3::cuda::testing {
namespace {

const std::vector<std::pair<int, int>> kRagged = {{1, 0}, {1, 62}, {1, 63}, {2, 63}, {0, 17}, {4, 0}, {3, 126}, {1, 999}, {4, 61}, {2, 190}};

void expect_close(const MlaBatch& batch, const std::string& what, const std::vector<double>& want, double all, double worst) {
  const Error error = relative_l2(batch.output(what), want, kLatent);
  EXPECT_LE(error.all, all) << what;
  EXPECT_LE(error.worst_row, worst) << what << ": row x head " << error.worst;
}

TEST(MlaDecodeTest, SimpleMatchesFloat64) {
  DSV3_NEEDS_GPU();
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    for (const int heads : {8, 12, 128}) {
      const MlaShape shape{.heads = heads, .format = format, .groups = kRagged, .seed = 3};
      MlaBatch batch(shape);
      EXPECT_OK(simple_mla_decode(batch.params(), nullptr));
      expect_synced();
      // Float32 throughout; the rounding to BF16 at the end gives 1.7e-3.
      expect_close(batch, "simple, " + shape.name(), batch.reference(), 2.2e-3, 3e-3);
    }
  }
}

}  // namespace
}  // namespace dsv3::cuda::testing
