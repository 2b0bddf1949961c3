// Deadlines of many connections, most of which move on before they are due. Moving a deadline later costs nothing:
// the timer that was set goes off, finds the later deadline and is set again. Loop thread only.
#pragma once

#include <cstdint>
#include <queue>
#include <vector>

namespace dsv3 {

class Timers {
 public:
  void add(int64_t when_us, uint64_t id) { heap_.push({when_us, id}); }
  bool empty() const { return heap_.empty(); }
  int64_t next_us() const { return heap_.top().when_us; }

  struct Entry {
    int64_t when_us;
    uint64_t id;
    bool operator<(const Entry& other) const { return when_us > other.when_us; }  // earliest on top
  };
  Entry pop() {
    const Entry entry = heap_.top();
    heap_.pop();
    return entry;
  }

 private:
  std::priority_queue<Entry> heap_;
};

}  // namespace dsv3
