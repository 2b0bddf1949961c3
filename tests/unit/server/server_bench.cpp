// Figures of the HTTP layer alone, on loopback, with a client process of our own beside it: requests a second, events a
// second over many streams, scrape times meanwhile, memory of an idle connection. Not a test: `ninja server_bench`.
#include <sys/epoll.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "server_fixture.h"

namespace dsv3 {
namespace {

int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

int64_t percentile(std::vector<int64_t> values, double share) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())))];
}

// Runs `client` in a child process and returns what it wrote into its result.
template <class F>
int64_t in_child(F client) {
  int pipe_fds[2];
  if (pipe(pipe_fds) != 0) return -1;
  const pid_t child = fork();
  if (child == 0) {
    const int64_t result = client();
    _exit(write(pipe_fds[1], &result, sizeof result) == sizeof result ? 0 : 1);
  }
  int64_t result = -1;
  if (read(pipe_fds[0], &result, sizeof result) != sizeof result) result = -1;
  waitpid(child, nullptr, 0);
  ::close(pipe_fds[0]);
  ::close(pipe_fds[1]);
  return result;
}

class Bench : public ServerTest {
 public:
  Bench() {
    config.max_connections = 8192;
    config.max_buffered_bytes = 64 << 20;
  }
  void TestBody() override {
    start();
    idle(4000);  // first: later the allocator has pages to spare
    requests();
    for (const int streams : {64, 2000}) events(streams, 0);
    events(2000, 20);
  }

 private:
  void requests() {
    constexpr int kConnections = 32;
    const int64_t cpu_before_us = cpu_us();
    const int64_t done = in_child([&] {
      const int epoll = epoll_create1(0);
      std::vector<RawClient> clients;
      for (int i = 0; i < kConnections; ++i) {
        clients.push_back(client());
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.u32 = static_cast<uint32_t>(i);
        epoll_ctl(epoll, EPOLL_CTL_ADD, clients.back().fd(), &event);
      }
      const std::string request = post("/echo", std::string(200, 'x'));
      for (auto& one : clients) one.send(request);
      int64_t count = 0;
      epoll_event events[kConnections];
      for (const int64_t end_us = now_us() + 2'000'000; now_us() < end_us;) {
        const int ready = epoll_wait(epoll, events, kConnections, 100);
        for (int i = 0; i < ready; ++i) {
          RawClient& one = clients[events[i].data.u32];
          one.receive();  // the answer is one write, and fits
          one.send(request);
          ++count;
        }
      }
      return count;
    });
    std::printf("requests/s, %d connections kept alive:   %8.0f   (server CPU %.1f us each)\n", kConnections,
                static_cast<double>(done) / 2,
                static_cast<double>(cpu_us() - cpu_before_us) / static_cast<double>(done));
  }

  // Each stream gets `events_per_second`; 0: as many as go through.
  void events(int streams, int events_per_second) {
    const int rounds = events_per_second > 0 ? 3 * events_per_second : 600'000 / streams;
    std::vector<std::shared_ptr<Exchange>> exchanges;
    std::thread accepting([&] {
      for (int i = 0; i < streams; ++i) {
        exchanges.push_back(service.next_held().exchange);
        exchanges.back()->begin_stream("text/event-stream");
      }
    });
    int64_t begin_us = 0, cpu_before_us = 0;
    std::vector<int64_t> scrapes_us;
    std::atomic<bool> done{false};
    std::thread producing([&] {
      accepting.join();
      const std::string event = "data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"}}]}" +
                                std::string(120, ' ') + "\n\n";
      begin_us = now_us();
      cpu_before_us = cpu_us();
      for (int round = 0; round < rounds; ++round) {
        for (auto& exchange : exchanges) exchange->send(event);
        if (events_per_second == 0) continue;
        const int64_t due_us = begin_us + int64_t{round + 1} * 1'000'000 / events_per_second;
        std::this_thread::sleep_for(std::chrono::microseconds(std::max<int64_t>(due_us - now_us(), 0)));
      }
      for (auto& exchange : exchanges) exchange->end();
    });
    std::thread scraping([&] {
      RawClient one = client();
      while (!done) {
        const int64_t start_us = now_us();
        if (one.ask(get("/metrics")).status == 200) scrapes_us.push_back(now_us() - start_us);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    });
    const int64_t closed = in_child([&] {
      const int epoll = epoll_create1(0);
      std::vector<RawClient> clients;
      for (int i = 0; i < streams; ++i) {
        clients.push_back(client());
        clients.back().send(get("/hold", "Connection: close\r\n"));
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.u32 = static_cast<uint32_t>(i);
        epoll_ctl(epoll, EPOLL_CTL_ADD, clients.back().fd(), &event);
      }
      int64_t ends = 0;
      std::vector<char> buffer(256 << 10);
      epoll_event ready[256];
      while (ends < streams) {
        const int count = epoll_wait(epoll, ready, 256, 10'000);
        if (count <= 0) break;
        for (int i = 0; i < count; ++i) {
          RawClient& one = clients[ready[i].data.u32];
          if (recv(one.fd(), buffer.data(), buffer.size(), 0) > 0) continue;
          one.close();
          ++ends;
        }
      }
      return ends;
    });
    const int64_t elapsed_us = now_us() - begin_us;
    const int64_t used_us = cpu_us() - cpu_before_us;
    done = true;
    producing.join();
    scraping.join();
    const double total = static_cast<double>(rounds) * streams;
    std::printf(
        "events/s, %4d streams (%lld ended)%s: %8.0f   (server CPU %.2f us each; scrape p50 %lld us, p99 %lld us)\n",
        streams, static_cast<long long>(closed), events_per_second > 0 ? ", paced" : "",
        total * 1e6 / static_cast<double>(elapsed_us), static_cast<double>(used_us) / total,
        static_cast<long long>(percentile(scrapes_us, 0.5)), static_cast<long long>(percentile(scrapes_us, 0.99)));
  }

  void idle(int connections) {
    const int64_t before = resident_bytes();
    int64_t after = 0;
    int go[2];
    if (pipe(go) != 0) return;
    std::thread measuring([&] {
      eventually([&] { return service.handled >= connections; }, 20'000'000);
      after = resident_bytes();
      if (write(go[1], "x", 1) != 1) std::abort();
    });
    service.handled = 0;
    in_child([&] {
      std::vector<RawClient> clients;
      for (int i = 0; i < connections; ++i) {
        clients.push_back(client());
        clients.back().ask(post("/echo", "{}"));
      }
      char byte;
      return int64_t{read(go[0], &byte, 1)};
    });
    measuring.join();
    std::printf("memory of an idle connection, user space: %8lld bytes (%d connections after one request each)\n",
                static_cast<long long>((after - before) / connections), connections);
  }
};

}  // namespace
}  // namespace dsv3

int main() {
  dsv3::Bench bench;
  bench.TestBody();
  return 0;
}
