// MLA decode against float64: ragged lengths, groups of several rows, both page formats, shuffled and poisoned pages.
#include "kernels/cuda/mla/mla_decode_plan.h"
#include "mla_decode_case.cuh"

namespace dsv3::cuda::testing {
namespace {

const std::vector<std::pair<int, int>> kRagged = {{1, 0}, {1, 62},  {1, 63},  {2, 63}, {0, 17},
                                                  {4, 0}, {3, 126}, {1, 999}, {4, 61}, {2, 190}};

void expect_close(const MlaBatch& batch, const std::string& what, const std::vector<double>& want, double all,
                  double worst) {
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

void run_fast(const MlaDecode& p, const Workspace& ws) {
  EXPECT_OK(mla_decode_schedule(p, ws.view, nullptr));
  EXPECT_OK(mla_decode(p, ws.view, nullptr));
  expect_synced();
}

// P and the output are rounded to BF16 (2^-9 each, at most): about 2.5e-3 over many values.
constexpr double kBf16All = 3.5e-3, kBf16Worst = 6e-3;
// FP8 pages: the kernel rounds dequantised values to BF16, which the reference does not: 1.7e-3 (root mean square) of
// each. A score is a sum of 576 products of deviation 2.7 in all (with the softmax scale), so it is off by 1.7e-3 * 2.7
// = 4.5e-3, and the key's weight by as large a part of itself. Errors of keys are independent, as are the values that
// they weigh: a row's output is off by 4.5e-3, if it rests on one pair of keys by 0.7 of their error; less where one
// key has all the weight. The worst of some thousand rows lies at 4 deviations.
constexpr double kFp8All = 5e-3, kFp8Worst = 2e-2;

/// Schedule, two runs with the same bits, one of which may read early, comparison with float64.
void check_fast(const MlaShape& shape) {
  MlaBatch batch(shape);
  Workspace ws(batch.params());
  run_fast(batch.params(), ws);
  const std::vector<float> first = batch.output(shape.name());
  const bool fp8 = shape.format == KvFormat::kFp8;
  expect_close(batch, shape.name(), batch.reference(), fp8 ? kFp8All : kBf16All, fp8 ? kFp8Worst : kBf16Worst);
  batch.poison_output();
  MlaDecode early = batch.params();
  early.reads_early = true;  // nothing is under way
  EXPECT_OK(mla_decode(early, ws.view, nullptr));
  expect_synced();
  EXPECT_EQ(first, batch.output(shape.name())) << "second run differs: " << shape.name();
  EXPECT_TRUE(ws.bytes.guards_intact()) << shape.name();
}

TEST(MlaDecodeTest, ShapeFillsTheDevice) {  // needs no GPU
  EXPECT_EQ(decode_shape(1, 128, 132).tiles, 2);
  EXPECT_EQ(decode_shape(1, 128, 132).parts, 66);
  EXPECT_EQ(decode_shape(1, 16, 132).parts, 132);
  EXPECT_EQ(decode_shape(4, 16, 132).tiles, 1);
  EXPECT_EQ(decode_shape(4, 128, 132).parts, 16);
  EXPECT_EQ(decode_shape(2, 8, 1000).parts, kMaxDecodeParts);
  EXPECT_EQ(aligned_share(32, 16), 32);
  EXPECT_EQ(aligned_share(125, 64), 128);
  EXPECT_EQ(aligned_share(31, 64), 32);
  EXPECT_EQ(aligned_share(31, 60), 60);
  EXPECT_EQ(aligned_share(3, 16), 4);
  for (int share = 1; share < 300; ++share) {
    for (int of_group = 1; of_group < 300; ++of_group) EXPECT_GE(aligned_share(share, of_group), share) << of_group;
  }
  for (int blocks = 1; blocks < 5000; ++blocks) {
    EXPECT_LE((blocks + split_blocks(blocks) - 1) / split_blocks(blocks), 8) << blocks;
    EXPECT_LE(split_blocks(blocks), split_blocks(blocks + 1)) << blocks;
  }
}

TEST(MlaDecodeTest, SmallMatchesFloat64) {
  DSV3_NEEDS_GPU();
  check_fast({.heads = 16, .groups = {{1, 5}}, .max_group_rows = 1, .seed = 5});
  check_fast({.heads = 64, .groups = {{1, 63}}, .max_group_rows = 1, .seed = 6});
  check_fast({.heads = 16, .groups = {{1, 200}}, .max_group_rows = 1, .seed = 7});
  check_fast({.heads = 16, .format = KvFormat::kFp8, .groups = {{1, 200}}, .max_group_rows = 1, .seed = 8});
}

TEST(MlaDecodeTest, TwoTilesOfEachFormat) {  // short enough for every sanitizer
  DSV3_NEEDS_GPU();
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8})
    check_fast({.heads = 128, .format = format, .groups = {{1, 300}, {1, 63}}, .max_group_rows = 1, .seed = 10});
}

TEST(MlaDecodeTest, RaggedMatchesFloat64) {
  DSV3_NEEDS_GPU();
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    for (const int heads : {8, 12, 16, 32, 64, 128})
      check_fast({.heads = heads, .format = format, .groups = kRagged, .seed = 11});
  }
}

// An odd number of tiles, and tiles that only the longer groups have.
TEST(MlaDecodeTest, OddTilesMatchFloat64) {
  DSV3_NEEDS_GPU();
  const std::vector<std::pair<int, int>> groups = {{3, 130}, {1, 700}, {0, 5}, {2, 63}, {3, 0}};
  check_fast({.heads = 64, .groups = groups, .max_group_rows = 3, .seed = 14});
  check_fast({.heads = 48, .groups = groups, .max_group_rows = 3, .deterministic = true, .seed = 15});
}

// Scores hundreds apart: the reference of the softmax moves late and often, and one key holds most of a row's weight.
TEST(MlaDecodeTest, SteepScoresMatchFloat64) {
  DSV3_NEEDS_GPU();
  const std::vector<std::pair<int, int>> groups = {{1, 0}, {2, 700}, {1, 1300}, {2, 62}};
  for (const int heads : {16, 128})
    check_fast({.heads = heads, .groups = groups, .max_group_rows = 2, .softmax_scale = 1.0f, .seed = 16});
}

// Every block of a small batch is a piece of its own: 1 to 9 pieces of a group, alone and beside one of many.
TEST(MlaDecodeTest, AnyNumberOfPiecesMatchesFloat64) {
  DSV3_NEEDS_GPU();
  std::vector<std::pair<int, int>> groups;
  for (int pieces = 1; pieces <= 9; ++pieces) groups.push_back({1, 64 * pieces - 2});
  check_fast({.heads = 16, .groups = groups, .max_group_rows = 1, .seed = 17});
  groups.resize(8);
  check_fast({.heads = 12, .groups = groups, .max_group_rows = 1, .seed = 18});
  groups.push_back({2, 1500});
  check_fast({.heads = 16, .groups = groups, .max_group_rows = 2, .seed = 19});
  // 32 pieces, as many as a warp joins, where there are more rows than blocks.
  check_fast({.heads = 64, .groups = {{1, 2000}, {1, 500}, {1, 500}, {1, 500}, {1, 500}}, .max_group_rows = 1, .seed = 20});
}

TEST(MlaDecodeTest, NoGroupsAndEmptyGroups) {
  DSV3_NEEDS_GPU();
  check_fast({.heads = 16, .groups = {{0, 3}, {0, 0}, {0, 70}}, .seed = 12});
  MlaBatch batch({.heads = 16, .groups = {{1, 3}}, .seed = 13});
  MlaDecode p = batch.params();
  p.num_groups = 0;
  EXPECT_OK(mla_decode_schedule(p, {}, nullptr));
  EXPECT_OK(mla_decode(p, {}, nullptr));
  EXPECT_OK(simple_mla_decode(p, nullptr));
}

/// The rows of this step come late: older blocks may be read before, theirs not.
TEST(MlaDecodeTest, EarlyReadersWaitForThisStepsRows) {
  DSV3_NEEDS_GPU();
  for (const MlaShape& shape : {MlaShape{.heads = 16, .groups = {{1, 130}}, .seed = 21}, MlaShape{.heads = 16, .groups = {{3, 127}}, .seed = 22},
                                MlaShape{.heads = 16, .groups = {{1, 3000}}, .seed = 23}}) {
    SCOPED_TRACE(shape.name());
    const MlaBatch batch(shape);
    const Workspace ws(batch.params());
    run_fast(batch.params(), ws);
    const std::vector<float> want = batch.output(shape.name());
    const LateRow late(batch, 0, shape.groups[0].second);
    MlaDecode early = batch.params();
    early.reads_early = true;
    ASSERT_OK(late.write());
    ASSERT_OK(mla_decode(early, ws.view, nullptr));
    expect_synced();
    EXPECT_EQ(want, batch.output(shape.name()));
  }
}

TEST(MlaDecodeTest, WrongArgumentsAreRefused) {
  DSV3_NEEDS_GPU();
  MlaBatch batch({.heads = 16, .groups = {{1, 3}}, .seed = 13});
  MlaDecode p = batch.params();
  EXPECT_FALSE(mla_decode(p, {}, nullptr).ok());
  p.heads = 129;
  EXPECT_FALSE(simple_mla_decode(p, nullptr).ok());
}

// Many parts share one long sequence; many sequences share one part; lengths of all sizes.
TEST(MlaDecodeTest, LargeBatchesMatchFloat64) {
  DSV3_NEEDS_GPU();
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    check_fast({.heads = 16, .format = format, .groups = {{1, 5000}}, .max_group_rows = 1, .seed = 21});
    check_fast({.heads = 128, .format = format, .groups = {{2, 5000}, {1, 100}}, .max_group_rows = 2, .seed = 22});
  }
  MlaShape mixed{.heads = 8, .max_group_rows = 2, .seed = 23};
  std::mt19937 generator(23);
  for (int g = 0; g < 300; ++g)
    mixed.groups.push_back({static_cast<int>(generator() % 3), static_cast<int>(generator() % 300)});
  mixed.groups[150] = {2, 9000};
  check_fast(mixed);
}

// A row's bits are the same alone and among others, whether its splits have slots of their own or are folded.
TEST(MlaDecodeTest, LargeDeterministicAloneAndInABatch) {
  DSV3_NEEDS_GPU();
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    MlaShape few{.heads = 128,
                 .format = format,
                 .groups = {{2, 40}, {1, 2500}, {2, 1023}, {2, 1022}, {1, 9000}},
                 .max_group_rows = 2,
                 .deterministic = true,
                 .seed = 31};
    check_fast(few);
    // Slots are 4 a part, and 33 parts have 4 tiles each: 40 sequences of 5 splits are too many and are folded.
    MlaShape many = few;
    for (int g = 0; g < 40; ++g) many.groups.push_back({1, 4300 + g});
    many.seed = 32;
    ASSERT_GT(40 * 5, decode_shape(2, 128, 132).slots());
    MlaBatch small(few), large(many);
    for (int g = 0; g < 5; ++g) large.copy_group(g, small, g);
    Workspace small_ws(small.params()), large_ws(large.params());
    run_fast(small.params(), small_ws);
    run_fast(large.params(), large_ws);
    for (int g = 0; g < 5; ++g) {
      EXPECT_EQ(small.bits_of(g), large.bits_of(g)) << "group " << g << " among few and many; " << few.name();
      MlaShape one = few;
      one.groups = {few.groups[g]};
      MlaBatch alone(one);
      alone.copy_group(0, small, g);
      Workspace alone_ws(alone.params());
      run_fast(alone.params(), alone_ws);
      EXPECT_EQ(small.bits_of(g), alone.bits_of(0)) << "group " << g << " alone; " << few.name();
    }
    const bool fp8 = format == KvFormat::kFp8;
    expect_close(large, "folded", large.reference(), fp8 ? kFp8All : kBf16All, fp8 ? kFp8Worst : kBf16Worst);
  }
}

// A graph captured once serves other lengths; the workspace serves step after step.
TEST(MlaDecodeTest, GraphServesOtherLengths) {
  DSV3_NEEDS_GPU();
  MlaBatch batch({.heads = 16, .groups = {{1, 700}, {2, 1500}, {4, 64}}, .seed = 41});
  Workspace ws(batch.params());
  MlaDecode p = batch.params();
  Guarded<QueryGroup> groups(3);
  p.groups = groups.get();
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t run = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_OK(mla_decode_schedule(p, ws.view, stream));
  EXPECT_OK(mla_decode(p, ws.view, stream));
  EXPECT_OK(mla_decode(p, ws.view, stream));  // as two layers
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&run, graph, 0), cudaSuccess);
  std::vector<QueryGroup> host(3);
  ASSERT_EQ(cudaMemcpy(host.data(), batch.params().groups, 3 * sizeof(QueryGroup), cudaMemcpyDeviceToHost),
            cudaSuccess);
  std::mt19937 generator(41);
  for (int step = 0; step < 20; ++step) {
    std::vector<QueryGroup> now = host;
    for (QueryGroup& group : now)
      group.start = static_cast<int32_t>(generator() % static_cast<uint32_t>(group.start + 1));
    groups.upload(now);
    batch.poison_output();
    ASSERT_EQ(cudaGraphLaunch(run, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    const std::vector<float> got = batch.output("graph");
    batch.poison_output();
    EXPECT_OK(simple_mla_decode(p, nullptr));
    expect_synced();
    const std::vector<float> expected = batch.output("simple");
    const Error error = relative_l2(got, expected, kLatent);
    EXPECT_LE(error.all, 4e-3) << "step " << step;  // both are rounded to BF16
    EXPECT_LE(error.worst_row, 7e-3) << "step " << step << ", row x head " << error.worst;
  }
  cudaGraphExecDestroy(run);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace dsv3::cuda::testing
