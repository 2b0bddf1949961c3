#include "safetensors_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <time.h>

#include "checkpoint_files.h"
#include "json_cursor.h"

namespace dsv3::weights {
namespace {

using testing::HasSubstr;

std::string refusal(std::string header, uint64_t data_bytes) {
  const std::string begin = header.substr(0, 200);
  const auto parsed = SafetensorsHeader::parse(std::move(header), data_bytes);
  EXPECT_FALSE(parsed.ok()) << begin;
  EXPECT_EQ(parsed.status().code(), Code::kBadModelFile);
  EXPECT_EQ(parsed.status().message().find('\n'), std::string::npos);
  return parsed.status().message();
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& range) {
  std::string text(1, '"');
  text.append(name).append("\":{\"dtype\":\"").append(dtype).append("\",\"shape\":").append(shape);
  return text.append(",\"data_offsets\":").append(range).append("}");
}

std::string braces(const std::string& entries) {
  std::string text(1, '{');
  text.append(entries).push_back('}');
  return text;
}

TEST(SafetensorsLength, IsProvenBeforeAnythingIsAllocated) {
  const auto check = [](std::string_view first, uint64_t file_bytes) {
    const auto length = safetensors_header_bytes(first, file_bytes);
    return length.ok() ? std::to_string(*length) : length.status().message();
  };
  EXPECT_THAT(check("", 0), HasSubstr("too short"));
  EXPECT_THAT(check("1234567", 7), HasSubstr("too short"));
  EXPECT_THAT(check(test::little_endian_length(100'000'001), uint64_t{1} << 40), HasSubstr("allowed 100000000"));
  EXPECT_EQ(check(test::little_endian_length(100'000'000), 100'000'008), "100000000");
  EXPECT_THAT(check(test::little_endian_length(100), 107), HasSubstr("cut off"));
  EXPECT_EQ(check(test::little_endian_length(100), 108), "100");
  EXPECT_THAT(check(test::little_endian_length(UINT64_MAX), 1000), HasSubstr("allowed"));
  EXPECT_THAT(check(test::little_endian_length(UINT64_MAX - 7), 1000), HasSubstr("allowed"));
  EXPECT_THAT(check(test::little_endian_length(0), 8), HasSubstr("too short"));
}

TEST(SafetensorsHeader, ReadsNamesShapesAndRanges) {
  const auto parsed = SafetensorsHeader::parse(
      "{ \"__metadata__\" : {\"format\":\"pt\",\"note\":\"a\\nb\"},\n" + entry("b", "F32", "[2, 3]", "[4,28]") + "," +
          entry("a", "BF16", "[2]", "[0,4]") + "," + entry("s\\u00e9\\ud83d\\ude42", "F8_E4M3", "[]", "[28, 29]") +
          "," + entry("empty", "I64", "[0,9223372036854775807]", "[4,4]") + "}   \n",
      29);
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  ASSERT_EQ(parsed->size(), 4u);
  const auto b = parsed->find("b");
  ASSERT_TRUE(b);
  EXPECT_EQ(b->dtype, DType::kF32);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b->begin, 4u);
  EXPECT_EQ(b->end, 28u);
  ASSERT_TRUE(parsed->find("sé🙂"));
  EXPECT_TRUE(parsed->find("sé🙂")->shape.empty());
  EXPECT_EQ(parsed->find("empty")->shape, (std::vector<int64_t>{0, INT64_MAX}));
  EXPECT_FALSE(parsed->find("c"));
  EXPECT_FALSE(parsed->find("__metadata__"));
  EXPECT_EQ(parsed->tensor(0).name, "a");
  EXPECT_TRUE(SafetensorsHeader::parse("{}", 0).ok());
}

TEST(SafetensorsHeader, KnowsDtypesThatItCannotRead) {
  const auto parsed =
      SafetensorsHeader::parse(braces(entry("d", "F64", "[2]", "[0,16]") + "," + entry("f4", "F4", "[2]", "[16,17]") +
                                      "," + entry("n", "F3_NEW", "[99]", "[17,20]")),
                               20);
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  EXPECT_FALSE(parsed->find("d")->dtype);
  EXPECT_EQ(parsed->find("n")->dtype_text, "F3_NEW");
  EXPECT_THAT(refusal(braces(entry("x", "F64", "[2]", "[0,15]")), 15), HasSubstr("\"x\""));
  EXPECT_THAT(refusal(braces(entry("x", "F4", "[3]", "[0,2]")), 2), HasSubstr("do not fill whole bytes"));
  EXPECT_THAT(refusal(braces(entry("x", "F6_E2M3", "[1]", "[0,1]")), 1), HasSubstr("do not fill whole bytes"));
}

TEST(SafetensorsHeader, RefusesWhatIsNotJson) {
  for (const char* text : {" {}",
                           "[]",
                           "{",
                           "}",
                           "{}x",
                           "{} {",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{\"a\":1}",
                           "{\"a\":null}",
                           "{,}",
                           "{\"a\":{}}",
                           "{\"a\":{},}",
                           "{'a':{}}",
                           "{\"a",
                           "{\"a\\",
                           "{\"a\\u12",
                           "{\"a\\x\":{}}",
                           "{\"\\ud800\":{}}",
                           "{\"\\udc00\":{}}",
                           "{\"\\ud800\\u0041\":{}}",
                           "{\"\\ud800\\",
                           "nul",
                           ""}) {
    refusal(text, 0);
  }
  refusal(std::string("{\0}", 3), 0);
  EXPECT_THAT(refusal("{\"\xff\":{}}", 0), HasSubstr("not UTF-8"));
  EXPECT_THAT(refusal("{\"\xc0\xaf\":{}}", 0), HasSubstr("not UTF-8"));
  EXPECT_THAT(refusal("{\"\xed\xa0\x80\":{}}", 0), HasSubstr("not UTF-8"));
  EXPECT_THAT(refusal("{\"a\nb\":{}}", 0), HasSubstr("control character"));
  EXPECT_THAT(refusal(braces(entry("a\\u0000", "U8", "[]", "[0,1]")), 1), HasSubstr("\\x00"));
}

TEST(SafetensorsHeader, RefusesFieldsThatAreNotAsTheFormatSays) {
  const std::string good = entry("x", "U8", "[4]", "[0,4]");
  ASSERT_TRUE(SafetensorsHeader::parse(braces(good), 4).ok());
  EXPECT_THAT(refusal("{\"x\":{\"shape\":[4],\"data_offsets\":[0,4]}}", 4),
              HasSubstr("\"x\": field \"dtype\" is missing"));
  EXPECT_THAT(refusal("{\"x\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", 4), HasSubstr("\"shape\" is missing"));
  EXPECT_THAT(refusal("{\"x\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4), HasSubstr("\"data_offsets\" is missing"));
  EXPECT_THAT(refusal("{\"x\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4),
              HasSubstr("twice"));
  EXPECT_THAT(refusal("{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"y\":1}}", 4),
              HasSubstr("unknown field \"y\""));
  for (const char* shape : {"4", "[-4]", "[4.0]", "[4e0]", "[04]", "[4,]", "[,4]", "[\"4\"]", "[null]", "[[4]]", "[-0]",
                            "[9223372036854775808]", "[18446744073709551616]", "[1,1,1,1,1,1,1,1,4]", "{}", "[4"}) {
    EXPECT_THAT(refusal(braces(entry("x", "U8", shape, "[0,4]")), 4), HasSubstr("\"x\"")) << shape;
  }
  for (const char* range : {"[0]", "[0,4,5]", "[4,0]", "[0,5]", "[-1,4]", "[0,4.0]", "[0,\"4\"]", "4", "[0,3]",
                            "[0,18446744073709551615]"}) {
    EXPECT_THAT(refusal(braces(entry("x", "U8", "[4]", range)), 4), HasSubstr("\"x\"")) << range;
  }
  EXPECT_THAT(refusal(braces(entry("x", std::string(33, 'Z'), "[4]", "[0,4]")), 4), HasSubstr("is no dtype"));
  for (const char* metadata :
       {"1", "[]", "{\"a\":1}", "{\"a\":{}}", "{\"a\"}", "{\"a\":\"b\",}", "{\"a\":\"b\",\"a\":\"c\"}"}) {
    EXPECT_THAT(refusal("{\"__metadata__\":" + std::string(metadata) + "," + good + "}", 4), HasSubstr("__metadata__"));
  }
}

TEST(SafetensorsHeader, RefusesSizesThatOverflow) {
  EXPECT_THAT(refusal(braces(entry("x", "U8", "[4294967296,4294967296]", "[0,4]")), 4), HasSubstr("elements overflow"));
  EXPECT_THAT(refusal(braces(entry("x", "F32", "[4611686018427387905]", "[0,4]")), 4), HasSubstr("bytes overflow"));
  EXPECT_THAT(refusal(braces(entry("x", "U8", "[9223372036854775807,9223372036854775807,0]", "[0,0]")), 0),
              HasSubstr("overflow"));
}

TEST(SafetensorsHeader, RefusesHolesOverlapsAndWhatIsNotCovered) {
  const auto two = [](const std::string& a, const std::string& b) {
    return braces(entry("a", "U8", "[4]", a) + "," + entry("b", "U8", "[4]", b));
  };
  ASSERT_TRUE(SafetensorsHeader::parse(two("[4,8]", "[0,4]"), 8).ok());
  EXPECT_THAT(refusal(two("[0,4]", "[5,9]"), 9), HasSubstr("bytes 4 to 5 before tensor \"b\" belong to no tensor"));
  EXPECT_THAT(refusal(two("[1,5]", "[5,9]"), 9), HasSubstr("bytes 0 to 1"));
  EXPECT_THAT(refusal(two("[0,4]", "[3,7]"), 7), HasSubstr("tensor \"b\" overlaps tensor \"a\""));
  EXPECT_THAT(refusal(two("[0,4]", "[0,4]"), 4), HasSubstr("overlaps"));
  EXPECT_THAT(refusal(two("[0,4]", "[4,8]"), 9), HasSubstr("cover 8 of 9"));
  EXPECT_THAT(refusal("{}", 1), HasSubstr("cover 0 of 1"));
  EXPECT_THAT(refusal(two("[0,4]", "[4,8]"), 7), HasSubstr("pass the end"));
}

TEST(SafetensorsHeader, RefusesDuplicates) {
  const std::string a = entry("a", "U8", "[4]", "[0,4]");
  EXPECT_THAT(refusal(braces(a + "," + a), 4), HasSubstr("duplicate tensor \"a\""));
  EXPECT_THAT(refusal(braces(a + "," + entry("a", "U8", "[4]", "[4,8]")), 8), HasSubstr("duplicate tensor \"a\""));
  EXPECT_THAT(refusal(braces(a + "," + entry("\\u0061", "U8", "[4]", "[4,8]")), 8),
              HasSubstr("duplicate tensor \"a\""));
  EXPECT_THAT(refusal(braces(entry("e", "U8", "[0]", "[0,0]") + "," + a + "," + entry("e", "U8", "[0]", "[4,4]")), 4),
              HasSubstr("duplicate tensor \"e\""));
  EXPECT_THAT(refusal("{\"__metadata__\":{}," + a + ",\"__metadata__\":{}}", 4),
              HasSubstr("duplicate name \"__metadata__\""));
}

TEST(SafetensorsHeader, DepthIsBoundedByTheGrammar) {
  refusal("{\"a\":" + std::string(1 << 20, '['), 0);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

/// Milliseconds of this thread's own work: other programs on the machine do not count.
int64_t cpu_ms() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

int64_t peak_memory_bytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

// The abuse files of the format's own repository, at the sizes that pass the length check. The promise is 200 ms and
// 3 times the header's bytes, the header itself included.
TEST(SafetensorsHeader, AbuseIsCheap) {
  constexpr int64_t kAllowedMs = kSanitized ? 10'000 : 400;  // twice the promise: machines differ
  const auto range_text = [](int begin_byte) {
    std::string text(1, '[');
    return text.append(std::to_string(begin_byte)).append(",").append(std::to_string(begin_byte + 1)).append("]");
  };
  std::string same_range, large, legal;
  same_range.reserve(91'000'000);
  while (same_range.size() < 90'000'000) {
    same_range += same_range.empty() ? '{' : ',';
    same_range += entry(std::to_string(same_range.size()), "F32", "[2,2]", "[0,16]");
  }
  same_range += '}';
  for (int i = 0; i < 100'000; ++i) {
    for (std::string* text : {&large, &legal}) *text += text->empty() ? '{' : ',';
    large += entry(std::to_string(i), "F32", "[1000000000,1000000000]", "[0,4000000000000000000]");
    legal += entry(std::to_string(i * 7919 % 100'000), "U8", "[1]", range_text(i));
  }
  large += '}';
  legal += '}';

  const auto header_bytes = static_cast<int64_t>(same_range.size());
  const int64_t memory_before = peak_memory_bytes(), begin = cpu_ms();
  EXPECT_THAT(refusal(std::move(same_range), 16), HasSubstr("overlaps"));
  const int64_t same_range_end = cpu_ms(), memory = peak_memory_bytes() - memory_before;
  EXPECT_THAT(refusal(std::move(large), 16), HasSubstr("pass the end"));
  const int64_t large_end = cpu_ms();
  EXPECT_TRUE(SafetensorsHeader::parse(std::move(legal), 100'000).ok());
  const int64_t legal_end = cpu_ms();
  std::printf("90 MB on one range: %ld ms, %.2f headers of memory more; 100,000 large: %ld ms, legal: %ld ms\n",
              same_range_end - begin, static_cast<double>(memory) / static_cast<double>(header_bytes),
              large_end - same_range_end, legal_end - large_end);
  EXPECT_LE(same_range_end - begin, kAllowedMs);
  EXPECT_LE(large_end - same_range_end, kAllowedMs);
  EXPECT_LE(legal_end - large_end, kAllowedMs);
  EXPECT_LE(memory, (kSanitized ? 20 : 2) * header_bytes);
}

TEST(ValidUtf8, AgreesWithTheTable) {
  for (const char* good : {"", "abcdefghijklm", "é", "€uro", "🙂", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf", "12345678é"})
    EXPECT_TRUE(valid_utf8(good)) << good;
  for (const char* bad : {"\x80", "\xc1\x80", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
                          "\xf5\x80\x80\x80", "\xe2\x82", "a\xc3", "12345678\xff", "\xc3\x28"})
    EXPECT_FALSE(valid_utf8(bad)) << bad;
}

}  // namespace
}  // namespace dsv3::weights
