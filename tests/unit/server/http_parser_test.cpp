#include "http_parser.h"

#include <gtest/gtest.h>

#include <random>

namespace dsv3 {
namespace {

using State = HttpParser::State;

constexpr HttpLimits kLimits{1024, 10, 4096};

// Feeds in pieces of `piece_bytes` until the request is whole, refused or the bytes end. Returns what was not taken.
std::string feed(HttpParser& parser, std::string_view bytes, size_t piece_bytes = 1 << 20) {
  while (!bytes.empty() && parser.state() != State::kComplete && parser.state() != State::kFailed) {
    const std::string_view piece = bytes.substr(0, piece_bytes);
    const size_t used = parser.feed(piece);
    EXPECT_GT(used, 0u);
    bytes.remove_prefix(used);
  }
  return std::string(bytes);
}

std::string get(const std::string& headers) {
  return "GET / HTTP/1.1\r\nHost: a\r\n" + headers + "\r\n";
}
std::string chunked(const std::string& body) {
  return "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body;
}

TEST(HttpParser, ReadsARequestHoweverItIsCut) {
  const std::string bytes =
      "POST /v1/models/a%2Fb?x=1&y=%20 HTTP/1.1\r\nHost: here\r\nX-Empty:\r\nX-Thing: \t a b \t\r\n"
      "Content-Length: 5\r\n\r\nhelloGET ";
  for (size_t piece = 1; piece <= bytes.size(); ++piece) {
    HttpParser parser(kLimits);
    const std::string rest = feed(parser, bytes, piece);
    ASSERT_EQ(parser.state(), State::kComplete) << piece;
    EXPECT_EQ(rest, "GET ");
    const HttpMessage message = parser.take();
    EXPECT_EQ(message.method, "POST");
    EXPECT_EQ(message.path, "/v1/models/a/b");
    EXPECT_EQ(message.query, "x=1&y=%20");
    EXPECT_EQ(message.body, "hello");
    EXPECT_TRUE(message.keep_alive);
    ASSERT_EQ(message.headers.size(), 4u);
    EXPECT_EQ(message.headers[1], (std::pair<std::string, std::string>("x-empty", "")));
    EXPECT_EQ(message.headers[2], (std::pair<std::string, std::string>("x-thing", "a b")));
    EXPECT_EQ(parser.state(), State::kIdle);
  }
}

TEST(HttpParser, ReadsChunkedBodiesHoweverTheyAreCut) {
  const std::string bytes = chunked("5\r\nhello\r\n00A\r\n, world!\r\n\r\n0\r\nX-Trailer: ignored\r\n\r\nrest");
  for (size_t piece = 1; piece <= bytes.size(); ++piece) {
    HttpParser parser(kLimits);
    EXPECT_EQ(feed(parser, bytes, piece), "rest");
    ASSERT_EQ(parser.state(), State::kComplete) << piece;
    const HttpMessage message = parser.take();
    EXPECT_EQ(message.body, "hello, world!\r\n");
    EXPECT_EQ(message.header("x-trailer"), nullptr);
  }
}

TEST(HttpParser, StopsAtTheEndOfTheHeadOnce) {
  HttpParser parser(kLimits);
  std::string_view bytes = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc";
  bytes.remove_prefix(parser.feed(bytes));
  EXPECT_EQ(bytes, "abc");
  EXPECT_EQ(parser.state(), State::kBody);
  EXPECT_TRUE(parser.message().expects_continue);
  EXPECT_EQ(parser.feed(bytes), 3u);
  EXPECT_EQ(parser.state(), State::kComplete);
}

TEST(HttpParser, KeepsAliveAsTheVersionAndConnectionSay) {
  const auto keeps = [](const std::string& bytes) {
    HttpParser parser(kLimits);
    feed(parser, bytes);
    EXPECT_EQ(parser.state(), State::kComplete) << bytes;
    return parser.take().keep_alive;
  };
  EXPECT_TRUE(keeps(get("")));
  EXPECT_FALSE(keeps(get("Connection: close\r\n")));
  EXPECT_FALSE(keeps(get("Connection: Upgrade, CLOSE\r\n")));
  EXPECT_FALSE(keeps(get("Connection: close\r\nConnection: keep-alive\r\n")));
  EXPECT_FALSE(keeps("GET / HTTP/1.0\r\n\r\n"));
  EXPECT_TRUE(keeps("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
}

TEST(HttpParser, AcceptsWhatIsLegal) {
  for (const std::string& bytes :
       {get(""), std::string("\r\n\r\n") + get(""), get("Content-Length: 0\r\n"), get("Content-Length: 000\r\n"),
        std::string("GET http://host:1/x?y HTTP/1.1\r\nHost: a\r\n\r\n"),
        std::string("GET https://host HTTP/1.1\r\nHost: a\r\n\r\n"),
        std::string("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), std::string("POST /flush HTTP/1.1\r\nHost: a\r\n\r\n"),
        get("X: caf\xc3\xa9\r\n"), get("X: 100%\r\n"), get("X: a%20b%0\r\n"), get("Content-Encoding: identity\r\n"),
        chunked("0\r\n\r\n"), chunked("0000000000000001\r\na\r\n0\r\n\r\n")}) {
    HttpParser parser(kLimits);
    EXPECT_EQ(feed(parser, bytes), "") << bytes;
    EXPECT_EQ(parser.state(), State::kComplete) << bytes << ": " << parser.fault().message;
  }
}

TEST(HttpParser, TakesTheHostOutOfAnAbsoluteTarget) {
  HttpParser parser(kLimits);
  feed(parser, "GET HTTP://host:80/x?y HTTP/1.1\r\nHost: a\r\n\r\n");
  const HttpMessage message = parser.take();
  EXPECT_EQ(message.path, "/x");
  EXPECT_EQ(message.query, "y");
}

struct Refused {
  const char* name;
  int status;
  std::string bytes;
};

std::vector<Refused> refused_cases() {
  const std::string nul(1, '\0');
  const std::string post = "POST / HTTP/1.1\r\nHost: a\r\n";
  std::vector<Refused> cases = {
      // Framing that two readers could understand differently.
      {"length and chunked", 400, post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"},
      {"chunked and length", 400, post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"},
      {"two lengths", 400, post + "Content-Length: 3\r\nContent-Length: 5\r\n\r\n"},
      {"two equal lengths", 400, post + "Content-Length: 3\r\nContent-Length: 3\r\n\r\n"},
      {"list of lengths", 400, post + "Content-Length: 3, 3\r\n\r\n"},
      {"negative length", 400, post + "Content-Length: -1\r\n\r\n"},
      {"signed length", 400, post + "Content-Length: +3\r\n\r\n"},
      {"hex length", 400, post + "Content-Length: 0x3\r\n\r\n"},
      {"empty length", 400, post + "Content-Length:\r\n\r\n"},
      {"length with text", 400, post + "Content-Length: 3a\r\n\r\n"},
      {"two encodings", 400, post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"},
      {"gzip, chunked", 400, post + "Transfer-Encoding: gzip, chunked\r\n\r\n"},
      {"chunked, identity", 400, post + "Transfer-Encoding: chunked, identity\r\n\r\n"},
      {"xchunked", 400, post + "Transfer-Encoding: xchunked\r\n\r\n"},
      {"chunked in 1.0", 400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"},
      {"blank before colon", 400, post + "Content-Length : 3\r\n\r\n"},
      {"folded line", 400, get("X: a\r\n b\r\n")},
      {"folded by tab", 400, get("X: a\r\n\tb\r\n")},
      {"first header folded", 400, "GET / HTTP/1.1\r\n Host: a\r\n\r\n"},
      {"bare LF after the request line", 400, "GET / HTTP/1.1\nHost: a\r\n\r\n"},
      {"bare LF in headers", 400, "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"},
      {"bare LF at the end", 400, "GET / HTTP/1.1\r\nHost: a\r\n\n"},
      {"bare CR", 400, get("X: a\rb\r\n")},
      {"CR CR LF", 400, get("X: a\r\r\n")},
      {"NUL in a value", 400, get("X: a" + nul + "b\r\n")},
      {"NUL in a name", 400, get("X" + nul + ": a\r\n")},
      {"NUL in the target", 400, "GET /" + nul + " HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"escape in a value", 400, get("X: \x1b[31m\r\n")},
      {"DEL in a value", 400, get("X: a\x7f\r\n")},
      {"encoded line break in a value", 400, get("X: a%0D%0aInjected: 1\r\n")},
      {"encoded line break in the path", 400, "GET /a%0D%0AInjected HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"encoded NUL in the path", 400, "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n"},
      // Heads.
      {"no colon", 400, get("nonsense\r\n")},
      {"empty name", 400, get(": a\r\n")},
      {"name with blank", 400, get("a b: c\r\n")},
      {"no host", 400, "GET / HTTP/1.1\r\n\r\n"},
      {"two hosts", 400, get("Host: b\r\n")},
      {"no target", 400, "GET HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"two blanks", 400, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"tab in the request line", 400, "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"no version", 400, "GET /\r\n\r\n"},
      {"relative target", 400, "GET x HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"asterisk", 400, "GET * HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"authority", 400, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"fragment", 400, "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"raw UTF-8 in the target", 400, "GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"cut percent", 400, "GET /a%2 HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"bad percent", 400, "GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"lower-case version", 400, "GET / http/1.1\r\nHost: a\r\n\r\n"},
      {"bad method", 400, "G(T / HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"TLS hello", 400, std::string("\x16\x03\x01\x02", 4)},
      {"HTTP/2 preface", 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
      {"HTTP/1.2", 505, "GET / HTTP/1.2\r\nHost: a\r\n\r\n"},
      {"HTTP/0.9", 400, "GET /\r\n"},
      {"unknown expectation", 417, get("Expect: miracles\r\n")},
      {"gzip body", 415, post + "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n"},
      {"body without length", 411, post + "Content-Type: application/json\r\n\r\n"},
      // Limits.
      {"length over the limit", 413, post + "Content-Length: 4097\r\n\r\n"},
      {"length over 64 bits", 413, post + "Content-Length: 99999999999999999999999\r\n\r\n"},
      {"chunk over the limit", 413, chunked("1001\r\n")},
      {"chunks over the limit", 413, chunked("1000\r\n" + std::string(4096, 'a') + "\r\n1\r\n")},
      {"chunk of 2^64 - 1", 413, chunked("ffffffffffffffff\r\n")},
      {"header bytes", 431, get("X: " + std::string(1024, 'a') + "\r\n")},
      {"a line without end", 431, std::string(1025, 'a')},
      {"header count", 431, get("A: 1\r\nA: 2\r\nA: 3\r\nA: 4\r\nA: 5\r\nA: 6\r\nA: 7\r\nA: 8\r\nA: 9\r\nA: 10\r\n")},
      {"trailer bytes", 431, chunked("0\r\nX: " + std::string(1024, 'a') + "\r\n\r\n")},
      {"empty lines", 431,
       [] {
         std::string lines;
         for (int i = 0; i < 600; ++i) lines += "\r\n";
         return lines;
       }()},
      // Chunks.
      {"chunk too long", 400, chunked("3\r\nabcd\r\n")},
      {"chunk data without line end", 400, chunked("3\r\nabc0\r\n")},
      {"chunk ends in LF", 400, chunked("3\r\nabc\n0\r\n\r\n")},
      {"trailer without colon", 400, chunked("0\r\nabc\r\n\r\n")},
      {"chunk size ends in LF", 400, chunked("3\nabc\r\n")},
  };
  for (const char* size :
       {"-1", "-2", "+5", "0x5", "00000000000000005", "", "5 ", " 5", "5 x", "5;a=b", "5,", "g", "5\t"}) {
    cases.push_back({size, 400, chunked(std::string(size) + "\r\nhello\r\n0\r\n\r\n")});
  }
  return cases;
}

TEST(HttpParser, RefusesWhatIsNotCertain) {
  for (const auto& one : refused_cases()) {
    for (const size_t piece : {size_t{1}, size_t{7}, size_t{1} << 20}) {
      HttpParser parser(kLimits);
      feed(parser, one.bytes, piece);
      ASSERT_EQ(parser.state(), State::kFailed) << one.name;
      EXPECT_EQ(parser.fault().status, one.status) << one.name << ": " << parser.fault().message;
      EXPECT_EQ(parser.feed("GET / HTTP/1.1\r\n"), 0u) << "a failed parser reads on";
    }
  }
}

TEST(HttpParser, ManyTinyChunksCostNoMoreThanTheirBytes) {
  HttpParser parser({1024, 10, 1 << 20});
  feed(parser, chunked(""));
  for (int i = 0; i < 1'000'000; ++i) ASSERT_EQ(parser.feed("1\r\na\r\n"), 6u);
  EXPECT_LE(parser.message().body.capacity(), size_t{2} << 20);
  feed(parser, "0\r\n\r\n");
  ASSERT_EQ(parser.state(), State::kComplete);
  EXPECT_EQ(parser.take().body.size(), 1'000'000u);
}

TEST(HttpParser, AnnouncedLengthAllocatesNothing) {
  HttpParser parser({1024, 10, size_t{1} << 40});
  feed(parser, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n");
  EXPECT_EQ(parser.state(), State::kBody);
  EXPECT_LE(parser.message().body.capacity(), size_t{128} << 10);
}

// Whatever comes, however it is cut: the same verdict, no value with a control character, all limits kept.
TEST(HttpParser, AnyBytesGiveTheSameVerdictHoweverCut) {
  std::mt19937 random(7);
  const std::vector<Refused> refused = refused_cases();
  std::vector<std::string> seeds = {get("A: b\r\n"), chunked("5\r\nhello\r\n0\r\n\r\n"),
                                    "POST /a%20b?c HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd"};
  for (const auto& one : refused) seeds.push_back(one.bytes);
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = seeds[random() % seeds.size()];
    for (unsigned edits = random() % 4; edits > 0 && !bytes.empty(); --edits) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, random() % 5);
          break;
        case 2:
          bytes.insert(at, 1, "\r\n :;0a%\t"[random() % 9]);
          break;
        default:
          bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 20));
      }
    }
    HttpParser whole(kLimits), cut(kLimits);
    const std::string rest = feed(whole, bytes);
    const std::string cut_rest = feed(cut, bytes, 1 + random() % 5);
    ASSERT_EQ(whole.state(), cut.state()) << bytes;
    // Of an over-long line with a control character, either fault may be seen first.
    if (whole.fault().status != 431 && cut.fault().status != 431) {
      ASSERT_EQ(whole.fault().status, cut.fault().status) << bytes;
    }
    if (whole.state() != State::kComplete) continue;
    ASSERT_EQ(rest, cut_rest);
    const HttpMessage message = whole.take(), other = cut.take();
    ASSERT_EQ(message.headers, other.headers);
    ASSERT_EQ(message.body, other.body);
    ASSERT_LE(message.body.size(), kLimits.max_body_bytes);
    ASSERT_LE(message.headers.size(), kLimits.max_headers);
    for (const auto& [name, value] : message.headers) {
      for (const unsigned char c : name + value) ASSERT_TRUE(c == '\t' || (c >= 0x20 && c != 0x7f));
    }
    for (const unsigned char c : message.path) ASSERT_TRUE(c >= 0x20 && c != 0x7f);
  }
}

}  // namespace
}  // namespace dsv3
