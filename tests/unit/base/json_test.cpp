#include "dsv3/base/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace dsv3 {
namespace {

TEST(ParseJson, KeepsOrderAndValues) {
  const auto json = parse_json(R"({"z":1,"a":[true,null,-2.5,"\u00e9"],"m":{}})");
  ASSERT_TRUE(json.ok()) << json.status().message();
  EXPECT_EQ(dump_json(*json), R"({"z":1,"a":[true,null,-2.5,"é"],"m":{}})");
}

TEST(ParseJson, RefusesWhatTheStandardForbids) {
  for (const char* text : {"", "{", "{}x", "[1,]", "{\"a\":1,\"a\":2}", "NaN", "1e999", "\"\\ud800\"", "\"\xff\"",
                           "\"a\nb\"", "{'a':1}", "[01]", "\xc3\x28"}) {
    EXPECT_FALSE(parse_json(text).ok()) << text;
  }
}

TEST(ParseJson, BoundsDepthBeforeRecursing) {
  const std::string deep(10 << 20, '[');
  const auto json = parse_json(deep);
  ASSERT_FALSE(json.ok());
  EXPECT_NE(json.status().message().find("nested deeper than 64"), std::string::npos);
  EXPECT_TRUE(parse_json(std::string(64, '[') + std::string(64, ']')).ok());
  EXPECT_FALSE(parse_json(std::string(65, '[') + std::string(65, ']')).ok());
}

TEST(ParseJson, BoundsBytesAndValues) {
  EXPECT_EQ(parse_json("[1,2,3]", {.max_bytes = 3}).status().code(), Code::kTooLarge);
  EXPECT_FALSE(parse_json("[1,2,3]", {.max_values = 3}).ok());
  EXPECT_TRUE(parse_json("[1,2,3]", {.max_values = 4}).ok());
}

TEST(ParseJson, LastDuplicateWinsWhereAllowed) {
  const auto json = parse_json(R"({"a":1,"a":2})", {.allow_duplicate_keys = true});
  ASSERT_TRUE(json.ok());
  EXPECT_EQ((*json)["a"], 2);
}

TEST(DumpJson, NeverWritesInvalidText) {
  EXPECT_EQ(dump_json(Json(std::string("a\xff"))), "\"a\xEF\xBF\xBD\"");
  EXPECT_EQ(dump_json(Json("\x01\"\\")), "\"\\u0001\\\"\\\\\"");
}

}  // namespace
}  // namespace dsv3
