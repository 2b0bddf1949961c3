#include "layer_limits.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "dsv3/weights/model_config.h"

namespace dsv3 {
namespace {

const std::string kModels = DSV3_TEST_DATA "/../../configs/models/";

ModelConfig v3() {
  std::ifstream file(kModels + "deepseek_v3.json");
  std::ostringstream text;
  text << file.rdbuf();
  auto config = parse_model_config(text.str(), "");
  EXPECT_TRUE(config.ok()) << config.status().message();
  return *config;
}

TEST(LayerLimit, BatchOneStreamsTheWeightsThatItTouches) {
  const ModelConfig c = v3();
  // Attention: FP8 projections and kv_b in BF16; 8 experts and the shared one of 44,040,192 bytes each, and the router.
  const double projections = (1536.0 + 576) * 7168 + 24576.0 * 1536 + 7168.0 * 16384, kv_b = 32768.0 * 512 * 2;
  const double experts = 9.0 * 44040192, router = 256.0 * 7168 * 2;
  const LayerLimit limit = layer_limit(c, true, 1, 0, false);
  EXPECT_NEAR(limit.attention_us, (projections + kv_b) / 3.1e6, 1.0);  // activations are small beside them
  EXPECT_NEAR(limit.mlp_us, (experts + router) / 3.1e6, 1.0);
  EXPECT_NEAR(layer_limit(c, false, 1, 0, false).mlp_us, 3.0 * 18432 * 7168 / 3.1e6, 1.0);
  EXPECT_NEAR(head_limit_us(c, 1), 129280.0 * 7168 * 2 / 3.1e6, 1.0);
}

TEST(LayerLimit, GrowsWithRowsAndContext) {
  const ModelConfig c = v3();
  double before = 0;
  for (const int64_t rows : {1, 8, 32, 128, 1024, 8192}) {
    const double now = layer_limit(c, true, rows, 4096, false).total();
    EXPECT_GT(now, before) << rows;
    before = now;
  }
  const auto attention = [&](int64_t context) { return layer_limit(c, true, 16, context, false).attention_us; };
  EXPECT_NEAR(attention(8192) - attention(4096), 16.0 * 4096 * 1152 / 3.1e6, 0.01);  // 242 operations a byte: memory binds
  // A long prompt is bound by the tensor cores: more than its weights take.
  EXPECT_GT(layer_limit(c, false, 8192, 0, true).total(), 2.0 * 8192 * 583e6 / 1740e6);
}

}  // namespace
}  // namespace dsv3
