#include "field_reader.h"

#include <gtest/gtest.h>

#include "errors.h"

namespace dsv3::api {
namespace {

Status status_of(const Json& object, const std::function<void(FieldReader&)>& read, bool strict = false) {
  FieldReader reader(object);
  read(reader);
  return reader.finish(strict);
}

TEST(FieldReader, NullIsAbsent) {
  const Json object = {{"a", nullptr}};
  FieldReader reader(object);
  EXPECT_FALSE(reader.boolean("a"));
  EXPECT_FALSE(reader.integer("a", 0, 1));
  EXPECT_FALSE(reader.number("a", {0, 1}));
  EXPECT_FALSE(reader.string("a"));
  EXPECT_EQ(reader.object("a"), nullptr);
  EXPECT_EQ(reader.array("a"), nullptr);
  EXPECT_TRUE(reader.finish(true).ok());
  reader.require("a");
  EXPECT_EQ(reader.finish().reason(), "missing_required_parameter");
}

TEST(FieldReader, IntegersAreExact) {
  const auto read = [](const Json& value) { return to_integer(value, "k", -5, 10); };
  EXPECT_EQ(*read(10), 10);
  EXPECT_EQ(*read(-5), -5);
  EXPECT_EQ(*read(7.0), 7);
  EXPECT_EQ(read(7.5).status().reason(), "invalid_type");
  EXPECT_EQ(read("7").status().reason(), "invalid_type");
  EXPECT_EQ(read(true).status().reason(), "invalid_type");
  for (const Json& out : {Json(11), Json(-6), Json(1e300), Json(-1e300), Json(18446744073709551615ull), Json(1e18)}) {
    EXPECT_EQ(read(out).status().reason(), "invalid_value") << out;
    EXPECT_NE(read(out).status().message().find("allowed -5 to 10"), std::string::npos);
  }
  EXPECT_EQ(*to_integer(Json(9223372036854775807ll), "k", 0, std::numeric_limits<int64_t>::max()),
            std::numeric_limits<int64_t>::max());
}

TEST(FieldReader, MessagesNameFieldSeenAndAllowed) {
  const auto fault = status_of({{"temperature", 999999}}, [](FieldReader& r) { (void)r.number("temperature", {0, 2}); });
  EXPECT_EQ(fault.message(), "temperature is 999999, allowed 0 to 2");
  EXPECT_EQ(fault.param(), "temperature");
  const auto open = status_of({{"min", 0}}, [](FieldReader& r) { (void)r.number("min", {0, 2, true}); });
  EXPECT_EQ(open.message(), "min is 0, allowed above 0 to 2");
}

TEST(FieldReader, KeepsTheFirstFault) {
  const auto fault = status_of({{"a", "x"}, {"b", "y"}}, [](FieldReader& r) {
    (void)r.boolean("b");
    (void)r.boolean("a");
  });
  EXPECT_EQ(fault.param(), "b");
}

TEST(FieldReader, StrictRefusesTheUnknown) {
  const auto read = [](FieldReader& r) { r.ignore({"a"}); };
  EXPECT_TRUE(status_of({{"a", 1}}, read, true).ok());
  EXPECT_TRUE(status_of({{"zz", 1}}, read, false).ok());
  EXPECT_EQ(status_of({{"zz", 1}}, read, true).param(), "zz");
}

TEST(FieldReader, RefuseLetsOffValuesThrough) {
  const auto read = [](FieldReader& r) { r.refuse({"a"}, "no"); };
  for (const Json& off : {Json(nullptr), Json(false), Json(""), Json::array(), Json::object()}) {
    EXPECT_TRUE(status_of({{"a", off}}, read).ok()) << off;
  }
  for (const Json& on : {Json(true), Json("x"), Json(0), Json::array({1}), Json({{"k", 1}})}) {
    EXPECT_EQ(status_of({{"a", on}}, read).reason(), "unsupported_parameter") << on;
  }
}

TEST(FieldReader, BoundsTheNumberOfFields) {
  Json object = Json::object();
  auto& fields = object.get_ref<Json::object_t&>();
  for (size_t i = 0; i <= FieldReader::kMaxFields; ++i) fields.emplace_back(std::to_string(i), i);
  EXPECT_FALSE(FieldReader(object).finish().ok());
  fields.pop_back();
  EXPECT_TRUE(FieldReader(object).finish().ok());
}

TEST(Describe, CutsLongTextBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 30; ++i) text += "é";
  text = "x" + text;
  const std::string shown = describe(Json(text));
  EXPECT_LT(shown.size(), 50u);
  EXPECT_EQ(shown.find("\xEF\xBF\xBD"), std::string::npos) << "cut inside a character";
}

}  // namespace
}  // namespace dsv3::api
