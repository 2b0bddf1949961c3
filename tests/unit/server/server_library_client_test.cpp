// A client that we did not write: cpp-httplib's.
#include <httplib.h>

#include "server_fixture.h"

namespace dsv3 {
namespace {

class ServerLibraryClient : public ServerTest {};

TEST_F(ServerLibraryClient, KeepAliveBodiesAndStreams) {
  start();
  httplib::Client one("127.0.0.1", server->port());
  one.set_keep_alive(true);
  for (int i = 0; i < 10; ++i) {
    const auto echoed = one.Post("/echo", std::string(100'000, 'a'), "application/json");
    ASSERT_TRUE(echoed);
    EXPECT_EQ(echoed->body.size(), 100'000u);
  }
  const auto chunked = one.Post(
      "/echo",
      [](size_t offset, httplib::DataSink& sink) {
        offset < 5 ? static_cast<void>(sink.write("x", 1)) : sink.done();
        return true;
      },
      "application/json");
  ASSERT_TRUE(chunked);
  EXPECT_EQ(chunked->body, "xxxxx");
  std::string streamed;
  const auto stream = one.Get("/count?100", [&](const char* data, size_t size) {
    streamed.append(data, size);
    return true;
  });
  ASSERT_TRUE(stream);
  EXPECT_EQ(streamed.substr(streamed.size() - 14), "data: [DONE]\n\n");
  const auto head = one.Head("/health");
  ASSERT_TRUE(head);
  EXPECT_EQ(head->get_header_value("Content-Length"), "2");
  const auto metrics_page = one.Get("/metrics");
  ASSERT_TRUE(metrics_page);
  EXPECT_EQ(metrics_page->get_header_value("Content-Type"), "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_EQ(one.Post("/metrics", "", "text/plain")->status, 405);
}

}  // namespace
}  // namespace dsv3
