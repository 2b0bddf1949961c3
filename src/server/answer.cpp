#include "answer.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "http_message.h"

namespace dsv3 {
namespace {

constexpr size_t kJoinedBodyBytes = 64 << 10;  // larger bodies are not copied behind their head
constexpr int64_t kWaitingEvents = 4;          // so many may wait for a reader however large they are

}  // namespace

Mailbox::Mailbox() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

Mailbox::~Mailbox() {
  if (fd_ >= 0) close(fd_);
}

void Mailbox::wake() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the loop is awake.
  [[maybe_unused]] const ssize_t written = write(fd_, &one, sizeof one);
}

void Mailbox::post(uint64_t connection) {
  bool first;
  {
    std::lock_guard lock(mutex_);
    first = contents_.connections.empty() && contents_.calls.empty();
    contents_.connections.push_back(connection);
  }
  if (first) wake();
}

void Mailbox::call(std::function<void()> function) {
  {
    std::lock_guard lock(mutex_);
    contents_.calls.push_back(std::move(function));
  }
  wake();
}

void Mailbox::take(Contents* out) {
  uint64_t count = 0;
  // Before the swap: news that comes between the two wakes the loop again.
  [[maybe_unused]] const ssize_t got = read(fd_, &count, sizeof count);
  out->connections.clear();
  out->calls.clear();
  std::lock_guard lock(mutex_);
  std::swap(*out, contents_);
}

void Answer::post(std::unique_lock<std::mutex>& lock) {
  const bool first = !posted_;
  posted_ = true;
  lock.unlock();
  if (first) mailbox_->post(options_.connection);
}

// The callback is let go: it may hold what holds the exchange. Its destructor may run anything, so not under the lock.
void Answer::finish(std::unique_lock<std::mutex>& lock) {
  state_ = State::kComplete;
  std::function<void()> unused = std::move(on_disconnect_);
  on_disconnect_ = nullptr;
  post(lock);
}

void Answer::push(std::string bytes) {
  unsent_bytes_ += static_cast<int64_t>(bytes.size());
  writes_.push_back(std::move(bytes));
}

bool Answer::decide_keep_alive() {
  const bool keep_alive = options_.keep_alive && !mailbox_->draining.load(std::memory_order_relaxed);
  if (!keep_alive) close_ = true;
  return keep_alive;
}

void Answer::respond(HttpResponse response) {
  std::unique_lock lock(mutex_);
  if (state_ != State::kOpen) return;
  status_ = response.status;
  ResponseHead head;
  head.status = response.status;
  const bool has_body = response.status != 204 && response.status != 304;
  head.content_type = has_body ? std::string_view(response.content_type) : std::string_view();
  head.content_length = has_body ? static_cast<int64_t>(response.body.size()) : -1;
  head.keep_alive = decide_keep_alive();
  head.minor_version = options_.minor_version;
  head.cors = options_.cors;
  head.request_id = options_.request_id;
  std::string bytes = render_head(head, response.headers);
  if (!has_body || options_.head_only) response.body.clear();
  if (response.body.size() <= kJoinedBodyBytes) {
    bytes += response.body;
    push(std::move(bytes));
  } else {
    push(std::move(bytes));
    push(std::move(response.body));
  }
  finish(lock);
}

void Answer::begin_stream(const std::string& content_type) {
  std::unique_lock lock(mutex_);
  if (state_ != State::kOpen) return;
  state_ = State::kStreaming;
  status_ = 200;
  chunked_ = options_.minor_version == 1;
  if (!chunked_) close_ = true;  // HTTP/1.0 knows the end of a stream only by the end of the connection
  ResponseHead head;
  head.content_type = content_type;
  head.chunked = chunked_;
  head.event_stream = true;
  head.keep_alive = decide_keep_alive() && chunked_;
  head.minor_version = options_.minor_version;
  head.cors = options_.cors;
  head.request_id = options_.request_id;
  push(render_head(head));
  post(lock);
}

void Answer::send(const std::string& bytes) {
  if (bytes.empty() || options_.head_only) return;
  std::string framed = frame_chunk(bytes);
  std::unique_lock lock(mutex_);
  if (state_ != State::kStreaming) return;
  // Measured before this event and against the largest one: a reader that keeps up may get events above the limit.
  largest_event_bytes_ = std::max(largest_event_bytes_, static_cast<int64_t>(bytes.size()));
  const int64_t allowed_bytes = std::max(options_.max_buffered_bytes, kWaitingEvents * largest_event_bytes_);
  if (unsent_bytes_ > allowed_bytes) {
    state_ = State::kOverflown;
    writes_.clear();
  } else {
    push(chunked_ ? std::move(framed) : bytes);
  }
  post(lock);
}

void Answer::end() {
  std::unique_lock lock(mutex_);
  if (state_ != State::kStreaming) return;
  if (chunked_ && !options_.head_only) push(std::string(kLastChunk));
  finish(lock);
}

void Answer::on_disconnect(std::function<void()> callback) {
  std::unique_lock lock(mutex_);
  switch (state_) {
    case State::kOpen:
    case State::kStreaming:
      if (!half_closed_) {
        on_disconnect_ = std::move(callback);
        return;
      }
      state_ = State::kGone;
      post(lock);
      break;
    case State::kOverflown:
      on_disconnect_ = std::move(callback);  // the loop is on its way
      return;
    case State::kGone:
      lock.unlock();
      break;
    case State::kComplete:
      return;
  }
  callback();
}

void Answer::abandon(int status, const char* message) {
  std::unique_lock lock(mutex_);
  if (state_ == State::kStreaming) {
    close_ = true;
    finish(lock);
    return;
  }
  if (state_ != State::kOpen) return;
  lock.unlock();
  HttpResponse response;
  response.status = status;
  response.body = error_body(status, message, nullptr);
  if (status == 503) response.headers.emplace_back("Retry-After", "1");
  respond(std::move(response));
}

bool Answer::client_gone() const {
  std::lock_guard lock(mutex_);
  return state_ == State::kGone;
}

Answer::News Answer::take(std::vector<std::string>* writes) {
  std::lock_guard lock(mutex_);
  posted_ = false;
  writes->swap(writes_);
  News news;
  if (!status_reported_ && status_ != 0) {
    news.status = status_;
    status_reported_ = true;
  }
  news.complete = state_ == State::kComplete;
  news.close = close_;
  news.gone = state_ == State::kOverflown || state_ == State::kGone;
  return news;
}

bool Answer::is_lost() {
  std::lock_guard lock(mutex_);
  posted_ = false;
  return state_ == State::kOverflown || state_ == State::kGone;
}

void Answer::written(int64_t bytes) {
  std::lock_guard lock(mutex_);
  unsent_bytes_ -= bytes;
}

std::function<void()> Answer::leave() {
  std::lock_guard lock(mutex_);
  if (state_ == State::kComplete || state_ == State::kGone) return nullptr;
  state_ = State::kGone;
  writes_.clear();
  return std::exchange(on_disconnect_, nullptr);
}

bool Answer::half_close(std::function<void()>* callback) {
  std::lock_guard lock(mutex_);
  half_closed_ = true;
  if (state_ == State::kComplete) return false;
  if (state_ == State::kGone) return true;
  if (on_disconnect_ == nullptr) return false;
  state_ = State::kGone;
  *callback = std::exchange(on_disconnect_, nullptr);
  return true;
}

}  // namespace dsv3
