#include "slots.h"

#include <gtest/gtest.h>

namespace dsv3::cpu {
namespace {

using Ints = std::vector<int32_t>;

TEST(Slots, PrefillDecodeAndVerifyRows) {
  SlotTable table(2, 4);
  table.begin(0, {}, Ints{10, 11, 12, 13, 14}, 5, 0);
  table.at(0).blocks = {7, 8};
  Batch batch;
  batch.segments = {{.slot = 0, .start = 0, .rows = 5, .sample = true}};
  table.prepare_batch(batch);
  EXPECT_EQ(batch.tokens, (Ints{10, 11, 12, 13, 14}));
  EXPECT_EQ(batch.positions, (Ints{0, 1, 2, 3, 4}));
  EXPECT_EQ(batch.logit_rows, (Ints{4}));

  table.at(0).tokens.push_back(20);  // what sampling does
  table.at(0).computed = 5;
  Batch draft;
  table.prepare_draft(batch, nullptr, draft);
  EXPECT_EQ(draft.tokens, (Ints{11, 12, 13, 14, 20}));
  EXPECT_EQ(draft.positions, (Ints{0, 1, 2, 3, 4}));
  EXPECT_EQ(draft.source_rows, (Ints{0, 1, 2, 3, 4}));
  EXPECT_EQ(draft.logit_rows, (Ints{4}));
  table.at(0).drafts = {30};
  Batch second;
  table.prepare_draft(batch, &draft, second);
  EXPECT_EQ(second.tokens, (Ints{30}));
  EXPECT_EQ(second.positions, (Ints{5}));
  EXPECT_EQ(second.source_rows, (Ints{0}));
  table.at(0).drafts = {30, 31};

  Batch verify;
  verify.segments = {{.slot = 0, .rows = 3, .decode = true, .sample = true}};
  table.prepare_batch(verify);
  EXPECT_EQ(verify.tokens, (Ints{20, 30, 31}));
  EXPECT_EQ(verify.positions, (Ints{5, 6, 7}));
  EXPECT_EQ(verify.logit_rows, (Ints{0, 1, 2}));

  // No room for a third row: two blocks of four hold positions 0 to 7.
  table.at(0).tokens.insert(table.at(0).tokens.end(), {30});
  table.at(0).computed = 6;
  table.at(0).drafts = {40, 41};
  verify.segments = {{.slot = 0, .rows = 3, .decode = true, .sample = true}};
  table.prepare_batch(verify);
  EXPECT_EQ(verify.tokens, (Ints{30, 40}));
}

TEST(Slots, ADraftWithoutAPlaceIsLeftOut) {
  SlotTable table(1, 4);
  table.begin(0, {}, Ints{1, 2, 3, 4}, 4, 0);
  table.at(0).blocks = {0};
  Batch batch;
  batch.segments = {{.slot = 0, .start = 0, .rows = 4, .sample = true}};
  table.prepare_batch(batch);
  table.at(0).tokens.push_back(5);
  table.at(0).computed = 4;
  Batch first, second;
  table.prepare_draft(batch, nullptr, first);
  table.at(0).drafts = {6};
  table.prepare_draft(batch, &first, second);
  EXPECT_EQ(second.rows, 0);
}

TEST(Slots, AChunkInTheMiddleDraftsNothing) {
  SlotTable table(1, 4);
  table.begin(0, {}, Ints{1, 2, 3, 4, 5, 6}, 6, 0);
  table.at(0).blocks = {0, 1};
  Batch batch;
  batch.segments = {{.slot = 0, .start = 0, .rows = 4}};
  table.prepare_batch(batch);
  EXPECT_TRUE(batch.logit_rows.empty());
  table.at(0).computed = 4;
  Batch draft;
  table.prepare_draft(batch, nullptr, draft);
  EXPECT_EQ(draft.tokens, (Ints{2, 3, 4, 5}));
  EXPECT_TRUE(draft.logit_rows.empty());
}

}  // namespace
}  // namespace dsv3::cpu
