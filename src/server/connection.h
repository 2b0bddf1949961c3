// One client connection: what the loop knows about it. Owned and touched by the loop thread only.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "answer.h"
#include "http_parser.h"

namespace dsv3 {

constexpr int64_t kNever = INT64_MAX;

struct Connection {
  enum class Phase {
    kReading,    ///< waits for a request or is in the middle of one
    kAnswering,  ///< one request is with the service, or its answer is being written; no further one is read
    kLingering,  ///< all is said; what the client still sends is thrown away, so that it can read our last answer
  };

  Connection(uint64_t connection_id, int socket, HttpLimits limits) : id(connection_id), fd(socket), parser(limits) {}

  const uint64_t id;
  const int fd;
  HttpParser parser;
  Phase phase = Phase::kReading;
  std::string input;  ///< bytes of later requests that came with the one being answered

  std::shared_ptr<Answer> answer;  ///< null while reading, and for refusals that the loop itself writes
  std::vector<std::string> out;    ///< each one write(); those before out_index are written
  size_t out_index = 0;
  size_t out_offset = 0;         ///< bytes of out[out_index] already written
  bool answer_complete = false;  ///< nothing will be added to `out`
  bool close_after = false;
  bool dropped = false;       ///< closed; lives until the end of this turn of the loop
  bool head_checked = false;  ///< the request's head was judged (auth, Expect)
  bool in_idle_list = false;
  std::list<uint64_t>::iterator idle_entry;

  uint32_t interest = 0;         ///< the epoll mask that is set
  int64_t charged_bytes = 0;     ///< this request's share of the budget for buffered bodies
  int64_t phase_since_us = 0;    ///< idle, head, body or linger began; in kAnswering the last write that progressed
  int64_t deadline_us = kNever;  ///< what the phase allows
  int64_t armed_us = kNever;     ///< the earliest timer set for it; never later than the deadline

  bool has_output() const { return out_index < out.size(); }
};

}  // namespace dsv3
