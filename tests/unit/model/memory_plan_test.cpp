// The memory plan against the counts of the released checkpoint, and its arithmetic at the edges.
#include "dsv3/model/memory_plan.h"

#include <gtest/gtest.h>

#include <string>

namespace dsv3 {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

ModelConfig v3() {
  ModelConfig c;
  c.model_type = "deepseek_v3";
  c.vocab_size = 129280;
  c.hidden_size = 7168;
  c.intermediate_size = 18432;
  c.moe_intermediate_size = 2048;
  c.num_hidden_layers = 61;
  c.num_nextn_predict_layers = 1;
  c.first_k_dense_replace = 3;
  c.num_attention_heads = 128;
  c.q_lora_rank = 1536;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  c.n_routed_experts = 256;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 8;
  c.n_group = 8;
  c.topk_group = 4;
  c.max_position_embeddings = 163840;
  c.fp8 = true;
  return c;
}

MemoryRequest cuda(int32_t tp, double gib) {
  MemoryRequest r;
  r.layout = {Backend::kCudaSm90, tp, 1, 1, 1};
  r.kv_dtype = KvDType::kBF16;
  r.context_tokens = 163840;
  r.max_slots = 256;
  r.prefill_tokens = 2048;
  r.available_bytes = static_cast<int64_t>(gib * static_cast<double>(kGiB));
  return r;
}

int64_t line(const MemoryPlan& plan, const std::string& key) {
  for (const MemoryLine& l : plan.lines) {
    if (l.key == key) return l.bytes;
  }
  return -1;
}

TEST(ParameterCounts, EqualTheReleasedCheckpoint) {
  const ParameterCounts n = count_parameters(v3());
  EXPECT_EQ(n.attention, 61 * int64_t{187105280});
  EXPECT_EQ(n.dense_mlp, 3 * int64_t{396361728});
  EXPECT_EQ(n.routed_experts, 58 * 256 * int64_t{44040192});
  EXPECT_EQ(n.shared_experts, 58 * int64_t{44040192});
  EXPECT_EQ(n.router, 58 * int64_t{1835008});
  EXPECT_EQ(n.embedding, 926679040);
  EXPECT_EQ(n.head, 926679040);
  EXPECT_EQ(n.main_total(), 671026404352);
  EXPECT_EQ(n.router_bias, 14848);
  EXPECT_EQ(n.mtp, 11610067968);
  EXPECT_EQ(n.mtp_bias, 256);
  // Every tensor of the 163 shards: the sum above, the copies of embedding and head, and one scale a 128 x 128 block.
  const int64_t scales = 41555600 - 59 * 256;
  EXPECT_EQ(n.main_total() + n.router_bias + n.mtp + n.mtp_bias + n.embedding + n.head + scales, 684531386000);
}

TEST(ParameterCounts, QueryWithoutCompressionAndTiedHead) {
  ModelConfig c = v3();
  c.q_lora_rank = 0;
  c.tie_word_embeddings = true;
  const ParameterCounts n = count_parameters(c);
  EXPECT_EQ(n.head, 0);
  EXPECT_EQ(n.attention, 61 * (int64_t{7168} * 128 * 192 + int64_t{576} * 7168 + int64_t{32768} * 512 + int64_t{7168} * 16384));
}

TEST(MemoryPlan, WeightBytesOfOneRankEqualTheFile) {
  const auto plan = plan_memory(v3(), cuda(1, 2000));
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  // In memory kv_b is BF16 (61 x 32768 x 512 without their scales), norms are float32, and tensors start on 256 bytes.
  const int64_t kv_b = int64_t{61} * 32768 * 512, kv_b_scales = int64_t{61} * 256 * 4 * 4, norms = count_parameters(v3()).norms;
  const int64_t file = 669065609216 + 163352928 + 3921590272 + 14848 * 4;  // FP8, scales, BF16, router biases
  EXPECT_EQ(plan->weight_bytes, file + kv_b - kv_b_scales + 2 * norms + int64_t{61 + 2} * 30 * 512);
  EXPECT_EQ(line(*plan, "routed_experts"), 58 * (int64_t{11274289152} + 256 * 3 * 16 * 56 * 4));
  EXPECT_EQ(line(*plan, "mtp"), -1);
  EXPECT_TRUE(plan->fits);
}

TEST(MemoryPlan, WhatStaysFp8OnAGpu) {
  const auto line_of = [](const ModelConfig& c, const char* key) {
    const auto plan = plan_memory(c, cuda(1, 4000));
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    return line(*plan, key);
  };
  const ModelConfig whole = v3();
  ModelConfig tied = whole, odd = whole, bf16 = whole;
  tied.tie_word_embeddings = true;
  EXPECT_EQ(line_of(tied, "embedding_head"), line_of(whole, "embedding_head"));  // read once as a table, once as a product
  odd.intermediate_size -= 64;  // not whole scale blocks: BF16
  EXPECT_EQ(line_of(odd, "dense_mlp"), int64_t{3} * 3 * (18432 - 64) * 7168 * 2);
  bf16.fp8 = false;
  EXPECT_GT(line_of(bf16, "expert_buffers"), line_of(whole, "expert_buffers"));
}

TEST(MemoryPlan, CacheBytesPerToken) {
  MemoryRequest r = cuda(8, 139);
  EXPECT_EQ(plan_memory(v3(), r)->cache_bytes_per_token, 70272);
  r.kv_dtype = KvDType::kFp8;
  EXPECT_EQ(plan_memory(v3(), r)->cache_bytes_per_token, 40016);
  r.mtp = true;
  EXPECT_EQ(plan_memory(v3(), r)->cache_bytes_per_token, 40672);
  r.kv_dtype = KvDType::kBF16;
  EXPECT_EQ(plan_memory(v3(), r)->cache_bytes_per_token, 71424);
}

TEST(MemoryPlan, LinesAddUpAndStayWithinTheMemory) {
  for (int32_t tp : {8, 16, 32, 64, 128}) {
    MemoryRequest r = cuda(tp, tp == 8 ? 139 : 78);
    r.mtp = true;
    r.num_drafts = 3;
    const auto plan = plan_memory(v3(), r);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    int64_t sum = 0;
    for (const MemoryLine& l : plan->lines) sum += l.bytes;
    EXPECT_EQ(sum, plan->total_bytes);
    EXPECT_TRUE(plan->fits) << tp;
    EXPECT_LE(plan->total_bytes, r.available_bytes);
    EXPECT_EQ(line(*plan, "kv_cache"), plan->num_blocks * 64 * 71424);
    EXPECT_EQ(plan->concurrency.back().context_tokens, 163840);
    EXPECT_GE(plan->concurrency.back().sequences, 1);
  }
}

TEST(MemoryPlan, SlicesKeepTheScaleOfEveryBlockTheyTouch) {
  // 2048 columns over 32 ranks: 64 each, half a block, so two ranks keep each scale.
  const auto plan = plan_memory(v3(), cuda(32, 78));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(line(*plan, "routed_experts"), int64_t{58} * 256 * 3 * (64 * 7168 + 56 * 4));
  EXPECT_EQ(line(*plan, "dense_mlp"), int64_t{3} * 3 * (576 * 7168 + 5 * 56 * 4));  // 576 columns touch 5 blocks
}

TEST(MemoryPlan, ExpertParallelHoldsWholeExperts) {
  MemoryRequest r = cuda(16, 78);
  r.layout.ep = 16;
  const auto plan = plan_memory(v3(), r);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(line(*plan, "routed_experts"), int64_t{58} * 16 * (44040192 + 3 * 16 * 56 * 4));
  EXPECT_EQ(line(*plan, "shared_experts"), int64_t{58} * (44040192 + 3 * 16 * 56 * 4));
  EXPECT_GT(line(*plan, "expert_exchange"), 0);
}

TEST(MemoryPlan, DataParallelAttentionRepeatsAttentionAndMultipliesSequences) {
  MemoryRequest r = cuda(16, 78);
  const auto one = plan_memory(v3(), r);
  r.layout.dp = 16;
  r.layout.ep = 16;
  const auto many = plan_memory(v3(), r);
  ASSERT_TRUE(one.ok() && many.ok());
  EXPECT_GT(line(*many, "attention"), 3 * line(*one, "attention"));
  EXPECT_EQ(many->concurrency.front().sequences % 16, 0);
}

TEST(MemoryPlan, CpuHoldsFloat32) {
  MemoryRequest r = cuda(1, 4000);
  r.layout.backend = Backend::kCpu;
  r.kv_dtype = KvDType::kF32;
  r.max_slots = 4;
  const auto plan = plan_memory(v3(), r);
  ASSERT_TRUE(plan.ok());
  const ParameterCounts n = count_parameters(v3());
  const int64_t kv_b_again = int64_t{61} * 32768 * 512;  // packed for both forms of attention
  EXPECT_EQ(plan->weight_bytes, 4 * (n.main_total() + n.router_bias + kv_b_again));
  EXPECT_EQ(plan->cache_bytes_per_token, 61 * 576 * 4);
  EXPECT_GE(plan->cache_tokens(), 163840);  // one full context, though that is more than the default of 2 GiB
  EXPECT_EQ(line(*plan, "cuda_context"), -1);
}

TEST(MemoryPlan, EachFractionKeepsItsOwnMeaning) {
  MemoryRequest r = cuda(8, 139);
  const auto tokens = [&](CacheRule rule, double fraction) {
    r.rule = rule;
    r.fraction = fraction;
    const auto plan = plan_memory(v3(), r);
    EXPECT_TRUE(plan.ok());
    return plan->cache_bytes;
  };
  const auto base = plan_memory(v3(), r);
  const int64_t block = 64 * 70272;
  const int64_t weights = base->weight_bytes, fixed = base->total_bytes - base->cache_bytes, all = r.available_bytes;
  const auto part = [](double f, int64_t bytes) { return static_cast<int64_t>(f * static_cast<double>(bytes)); };
  EXPECT_EQ(tokens(CacheRule::kStaticFraction, 0.8), (part(0.8, all) - weights) / block * block);
  EXPECT_EQ(tokens(CacheRule::kEngineFraction, 0.9), (part(0.9, all) - fixed) / block * block);
  EXPECT_EQ(tokens(CacheRule::kFreeAfterWeights, 0.5), part(0.5, all - weights) / block * block);
  EXPECT_EQ(tokens(CacheRule::kFreeAfterLoad, 0.9), part(0.9, all - fixed) / block * block);
  EXPECT_EQ(tokens(CacheRule::kFreeAfterWeights, 1.0), (all - fixed) / block * block);  // never more than there is
}

TEST(MemoryPlan, AbsoluteTokensAreExactOrRefused) {
  MemoryRequest r = cuda(8, 139);
  r.max_total_tokens = 200000;
  auto plan = plan_memory(v3(), r);
  ASSERT_TRUE(plan->fits);
  EXPECT_EQ(plan->cache_tokens(), 200000 / 64 * 64);
  r.max_total_tokens = 100000;  // less than one context
  plan = plan_memory(v3(), r);
  EXPECT_FALSE(plan->fits);
  EXPECT_FALSE(plan->suggestions.empty());
  r.max_total_tokens = 1'000'000'000;
  plan = plan_memory(v3(), r);
  EXPECT_FALSE(plan->fits);
  ASSERT_FALSE(plan->suggestions.empty());
  EXPECT_EQ(plan->suggestions.front().rfind("--max-total-tokens ", 0), 0u) << plan->suggestions.front();
}

TEST(MemoryPlan, RefusalNamesSettingsThatFit) {
  MemoryRequest r = cuda(8, 78);  // 641 GiB do not fit eight of these
  const auto plan = plan_memory(v3(), r);
  ASSERT_TRUE(plan.ok());
  EXPECT_FALSE(plan->fits);
  EXPECT_GT(plan->short_bytes, 0);
  ASSERT_FALSE(plan->suggestions.empty());
  EXPECT_EQ(plan->suggestions.back(), "--tp 16");
  r.layout.tp = 16;
  EXPECT_TRUE(plan_memory(v3(), r)->fits);
  EXPECT_NE(format_plan(*plan).find("--tp 16"), std::string::npos);
}

TEST(MemoryPlan, LowerContextIsFoundWhenItHelps) {
  MemoryRequest r = cuda(8, 90);
  const auto plan = plan_memory(v3(), r);
  ASSERT_FALSE(plan->fits);
  ASSERT_FALSE(plan->suggestions.empty());
  for (const std::string& s : plan->suggestions) {
    if (s.rfind("--context-length ", 0) != 0) continue;
    MemoryRequest smaller = r;
    smaller.context_tokens = std::stoll(s.substr(17));
    EXPECT_TRUE(plan_memory(v3(), smaller)->fits);
  }
}

TEST(Layout, RefusalsNameTheFlagAndWhatWorks) {
  const ModelConfig c = v3();
  const auto refused = [&](Layout l, const std::string& flag, const std::string& works) {
    const Status s = check_layout(c, l);
    EXPECT_EQ(s.code(), Code::kInvalidArgument) << flag;
    EXPECT_EQ(s.param(), flag) << s.message();
    EXPECT_NE(s.message().find(works), std::string::npos) << s.message();
    EXPECT_EQ(s.message().find('\n'), std::string::npos);
  };
  refused({Backend::kCudaSm90, 3, 1, 1, 1}, "--tp", "1, 2, 4, 8");
  refused({Backend::kCudaSm90, 0, 1, 1, 1}, "--tp", "1 and more");
  refused({Backend::kCudaSm90, 256, 1, 1, 1}, "--tp", "1, 2, 4, 8");
  refused({Backend::kCudaSm90, 8, 3, 1, 1}, "--dp", "1, 2, 4, 8");
  refused({Backend::kCudaSm90, 8, 16, 1, 1}, "--dp", "1, 2, 4, 8");
  refused({Backend::kCudaSm90, 8, 1, 16, 1}, "--ep", "1, 2, 4, 8");
  refused({Backend::kCudaSm90, 8, 1, -1, 1}, "--ep", "1, 2, 4, 8");
  refused({Backend::kCudaSm90, 16, 1, 1, 3}, "--nnodes", "1, 2, 4, 8, 16");
  EXPECT_TRUE(check_layout(c, {Backend::kCudaSm90, 256, 2, 256, 32}).ok());
  EXPECT_TRUE(check_layout(c, {Backend::kCudaSm90, 24, 3, 8, 3}).ok());
}

TEST(MemoryPlan, RequestsWithoutSenseAreErrors) {
  const auto param = [](auto change) {
    MemoryRequest r = cuda(8, 139);
    change(r);
    const auto plan = plan_memory(v3(), r);
    EXPECT_FALSE(plan.ok());
    return plan.ok() ? std::string() : plan.status().param();
  };
  EXPECT_EQ(param([](MemoryRequest& r) { r.context_tokens = 0; }), "--context-length");
  EXPECT_EQ(param([](MemoryRequest& r) { r.max_slots = -1; }), "--max-running-requests");
  EXPECT_EQ(param([](MemoryRequest& r) { r.prefill_tokens = 0; }), "--chunked-prefill-size");
  param([](MemoryRequest& r) { r.available_bytes = 0; });
  param([](MemoryRequest& r) { r.rule = CacheRule::kStaticFraction; r.fraction = 1.5; });
  param([](MemoryRequest& r) { r.num_drafts = -1; });
}

}  // namespace
}  // namespace dsv3
