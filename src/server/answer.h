// One answer, shared by the thread that makes it and the loop that writes it: the service calls the upper half from
// any thread, the loop thread the lower. Bytes go from one to the other by swapping a vector under a mutex.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dsv3/api/exchange.h"

namespace dsv3 {

/// Wakes the loop: "this connection has news", or "run this". Outlives the loop as long as an answer refers to it.
class Mailbox {
 public:
  struct Contents {
    std::vector<uint64_t> connections;
    std::vector<std::function<void()>> calls;
  };

  Mailbox();  ///< fd() is -1 when the system has no descriptor left
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  int fd() const { return fd_; }
  void post(uint64_t connection);
  void call(std::function<void()> function);
  void take(Contents* out);  ///< loop thread; `out` comes back with all news since the last take()

  std::atomic<bool> draining{false};  ///< answers begun from now on say Connection: close

 private:
  void wake();

  int fd_;
  std::mutex mutex_;
  Contents contents_;  // guarded by mutex_
};

struct AnswerOptions {
  uint64_t connection = 0;
  int minor_version = 1;
  bool keep_alive = true;
  bool head_only = false;  ///< HEAD: the headers of GET without the body
  bool cors = false;
  std::string request_id;
  int64_t max_buffered_bytes = 1 << 20;  ///< of a stream; a client further behind, and by more than a few events, is given up
};

class Answer {
 public:
  Answer(std::shared_ptr<Mailbox> mailbox, AnswerOptions options)
      : mailbox_(std::move(mailbox)), options_(std::move(options)) {}

  void respond(HttpResponse response);
  void begin_stream(const std::string& content_type);
  void send(const std::string& bytes);
  void end();
  void on_disconnect(std::function<void()> callback);
  /// Nobody will call again: an answer not begun becomes `status`, a stream is cut off without its last chunk.
  void abandon(int status, const char* message);
  bool client_gone() const;

  struct News {
    int status = 0;         ///< of the head, reported once; 0 before and after
    bool complete = false;  ///< nothing follows what take() gave out
    bool close = false;     ///< the connection must end after this answer
    bool gone = false;      ///< the client is to be cut off now
  };
  News take(std::vector<std::string>* writes);  ///< `writes` must be empty
  /// Instead of take() while earlier writes are stuck: true when the client is to be cut off.
  bool is_lost();
  void written(int64_t bytes);  ///< makes room under max_buffered_bytes
  /// The client left. Returns what on_disconnect() was given, once, unless the answer is complete.
  std::function<void()> leave();
  /// The client shut down its sending side: it may have gone, or only be done asking. Work that asked to be told of
  /// a disconnect is cancelled (true; `callback` is to be run); an answer without such interest is still written.
  bool half_close(std::function<void()>* callback);

 private:
  enum class State { kOpen, kStreaming, kComplete, kOverflown, kGone };

  void finish(std::unique_lock<std::mutex>& lock);
  void post(std::unique_lock<std::mutex>& lock);
  void push(std::string bytes);
  bool decide_keep_alive();

  const std::shared_ptr<Mailbox> mailbox_;
  const AnswerOptions options_;
  mutable std::mutex mutex_;  // guards all below
  State state_ = State::kOpen;
  std::vector<std::string> writes_;  // each one write() on the socket
  int64_t unsent_bytes_ = 0;         // in writes_ and in the loop's hands
  int64_t largest_event_bytes_ = 0;
  std::function<void()> on_disconnect_;
  int status_ = 0;
  bool status_reported_ = false;
  bool close_ = false;
  bool chunked_ = false;
  bool posted_ = false;  // the loop has been told and has not looked yet
  bool half_closed_ = false;
};

/// What the service holds. When its last copy goes without an answer, the client gets a 500 instead of silence.
class AnswerExchange : public Exchange {
 public:
  explicit AnswerExchange(std::shared_ptr<Answer> answer) : answer_(std::move(answer)) {}
  ~AnswerExchange() override { answer_->abandon(500, "the request was dropped without an answer"); }

  void respond(HttpResponse response) override { answer_->respond(std::move(response)); }
  void begin_stream(std::string content_type) override { answer_->begin_stream(content_type); }
  void send(std::string bytes) override { answer_->send(bytes); }
  void end() override { answer_->end(); }
  void on_disconnect(std::function<void()> callback) override { answer_->on_disconnect(std::move(callback)); }

  Answer& answer() { return *answer_; }

 private:
  const std::shared_ptr<Answer> answer_;
};

}  // namespace dsv3
