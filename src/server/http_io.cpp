// HttpLoop's reading and writing halves: from bytes to requests, from answers to bytes.
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "dsv3/base/log.h"
#include "http_loop.h"

namespace dsv3 {
namespace {

constexpr int kWritesPerTurn = 8;  // of one connection; then the others get their turn

}  // namespace

// --- reading
// ----------------------------------------------------------------------------------------------------------

void HttpLoop::read_ready(Connection& connection) {
  const ssize_t got = recv(connection.fd, scratch_.data(), scratch_.size(), MSG_DONTWAIT);
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return;
    return client_gone(connection);
  }
  if (connection.phase == Connection::Phase::kLingering) {
    if (got == 0) drop(connection, /*reset=*/false);
    return;
  }
  // An end before a whole request: there is nothing to answer.
  if (got == 0) return drop(connection, /*reset=*/false);
  consume(connection, std::string_view(scratch_.data(), static_cast<size_t>(got)));
}

void HttpLoop::consume(Connection& connection, std::string_view bytes) {
  HttpParser& parser = connection.parser;
  while (!bytes.empty() && connection.phase == Connection::Phase::kReading) {
    const HttpParser::State before = parser.state();
    bytes.remove_prefix(parser.feed(bytes));
    const HttpParser::State after = parser.state();
    if (after == HttpParser::State::kFailed) return refuse(connection, parser.fault());
    if (after != before) {  // the clock of the new part of the request starts
      set_idle(connection, after == HttpParser::State::kIdle);
      connection.phase_since_us = now_us_;
    }
    if (after == HttpParser::State::kBody || after == HttpParser::State::kComplete) {
      if (!judge(connection)) return;
    }
    if (after == HttpParser::State::kComplete) dispatch(connection);
  }
  if (connection.dropped) return;
  connection.input.assign(bytes);
  update_deadline(connection);
}

// False when the request was refused.
bool HttpLoop::judge(Connection& connection) {
  const HttpParser& parser = connection.parser;
  if (!connection.head_checked) {
    connection.head_checked = true;
    if (const auto fault = handler_.check_head(parser.message())) {
      refuse(connection, *fault);
      return false;
    }
    if (parser.message().expects_continue && parser.state() == HttpParser::State::kBody) {
      const ssize_t sent = send(connection.fd, kContinue.data(), kContinue.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      // Without room for it the client goes on by itself after a while; half of it would garble the next answer.
      if (sent > 0 && static_cast<size_t>(sent) < kContinue.size()) {
        client_gone(connection);
        return false;
      }
    }
  }
  const auto growth = static_cast<int64_t>(parser.body_bytes()) - connection.charged_bytes;
  connection.charged_bytes += growth;
  if (buffered_body_bytes_.fetch_add(growth, std::memory_order_relaxed) + growth > config_.max_pending_body_bytes) {
    refuse(connection, {503, "too many request bodies are waiting"});
    return false;
  }
  return true;
}

void HttpLoop::dispatch(Connection& connection) {
  HttpMessage message = connection.parser.take();
  const std::string* client_id = message.header("x-request-id");

  HttpRequest request;
  request.request_id = client_id != nullptr && is_sane_request_id(*client_id) ? *client_id : request_ids_.next();
  // HEAD is GET whose body stays here, so no route needs to know of it.
  const bool head_only = message.method == "HEAD";
  request.method = head_only ? "GET" : std::move(message.method);
  request.path = std::move(message.path);
  request.query = std::move(message.query);
  request.headers = std::move(message.headers);
  request.body = std::move(message.body);

  AnswerOptions options;
  options.connection = connection.id;
  options.minor_version = message.minor_version;
  options.keep_alive = message.keep_alive;
  options.head_only = head_only;
  options.cors = config_.cors;
  options.request_id = request.request_id;
  options.max_buffered_bytes = config_.max_buffered_bytes;
  connection.answer = std::make_shared<Answer>(mailbox_, std::move(options));
  connection.close_after = false;
  set_phase(connection, Connection::Phase::kAnswering);
  const int64_t charged_bytes = std::exchange(connection.charged_bytes, 0);  // the handler's from now on
  handler_.on_request(std::move(request), std::make_shared<AnswerExchange>(connection.answer), charged_bytes);
}

// Answers without the service, then closes: after a fault nothing of the client's bytes can be trusted.
void HttpLoop::refuse(Connection& connection, HttpFault fault) {
  const char* code = nullptr;
  std::vector<std::pair<std::string, std::string>> extra;
  if (fault.status == 401) {
    code = "invalid_api_key";
    extra.emplace_back("WWW-Authenticate", "Bearer");
  } else if (fault.status == 503) {
    code = "too_many_connections";
    extra.emplace_back("Retry-After", "1");
  }
  const std::string* client_id = connection.parser.message().header("x-request-id");
  const std::string request_id =
      client_id != nullptr && is_sane_request_id(*client_id) ? *client_id : request_ids_.next();
  const std::string body = error_body(fault.status, fault.message, code);
  ResponseHead head;
  head.status = fault.status;
  head.content_type = "application/json";
  head.content_length = static_cast<int64_t>(body.size());
  head.keep_alive = false;
  head.cors = config_.cors;
  head.request_id = request_id;

  set_idle(connection, false);
  uncharge(connection);
  connection.input.clear();
  connection.answer.reset();
  connection.out.assign(1, render_head(head, extra));
  if (connection.parser.message().method != "HEAD") connection.out.back() += body;
  connection.out_index = connection.out_offset = 0;
  connection.answer_complete = true;
  connection.close_after = true;
  set_phase(connection, Connection::Phase::kAnswering);
  handler_.on_response(fault.status);
  log_event(LogLevel::kDebug, "http_refused", {{"status", fault.status}, {"reason", fault.message}});
  flush(connection);
}

void HttpLoop::peer_half_closed(Connection& connection) {
  set_interest(connection, connection.interest & ~(EPOLLIN | EPOLLRDHUP));
  std::function<void()> callback;
  if (connection.answer == nullptr || !connection.answer->half_close(&callback)) return;
  handler_.on_response(499);
  if (callback != nullptr) handler_.on_client_left(std::move(callback));
  drop(connection, /*reset=*/false);
}

// --- writing
// ----------------------------------------------------------------------------------------------------------

void HttpLoop::flush(Connection& connection) {
  if (!write_out(connection)) return;
  // One helping a call: an answer that grows while it is written waits its turn behind the other connections.
  if (connection.answer != nullptr && !connection.answer_complete) {
    const Answer::News news = connection.answer->take(&connection.out);
    if (news.gone) return client_gone(connection);
    if (news.status != 0) handler_.on_response(news.status);
    connection.answer_complete = news.complete;
    connection.close_after = connection.close_after || news.close;
    connection.phase_since_us = now_us_;
    if (!write_out(connection)) return;
  }
  if (connection.answer_complete) {
    answer_written(connection);
  } else {
    update_deadline(connection);
  }
}

// Each string is one write(), so that an event leaves as one piece wherever the socket has room. False when something
// is left for later or the connection is gone.
bool HttpLoop::write_out(Connection& connection) {
  int64_t written_bytes = 0;
  int error = 0;
  for (int writes = 0; writes < kWritesPerTurn && connection.has_output(); ++writes) {
    const std::string& bytes = connection.out[connection.out_index];
    const size_t left_bytes = bytes.size() - connection.out_offset;
    const ssize_t sent =
        send(connection.fd, bytes.data() + connection.out_offset, left_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR) continue;
      error = errno;
      break;
    }
    written_bytes += sent;
    if (static_cast<size_t>(sent) == left_bytes) {
      ++connection.out_index;
      connection.out_offset = 0;
    } else {
      connection.out_offset += static_cast<size_t>(sent);
    }
  }
  if (written_bytes > 0) {
    connection.phase_since_us = now_us_;
    if (connection.answer != nullptr) connection.answer->written(written_bytes);
  }
  if (error != 0 && error != EAGAIN && error != EWOULDBLOCK) {
    client_gone(connection);
    return false;
  }
  if (connection.has_output()) {
    // Either the socket is full, or this connection had its share of the turn and EPOLLOUT brings it back in the next.
    set_interest(connection, connection.interest | EPOLLOUT);
    update_deadline(connection);
    return false;
  }
  connection.out.clear();
  connection.out_index = 0;
  set_interest(connection, connection.interest & ~EPOLLOUT);
  return true;
}

void HttpLoop::answer_written(Connection& connection) {
  connection.out = std::vector<std::string>();  // idle connections keep no buffers
  if (connection.close_after) return linger(connection);
  begin_reading(connection);
  if (!connection.input.empty()) {
    const std::string input = std::move(connection.input);
    connection.input = std::string();
    consume(connection, input);
  }
  if (mailbox_->draining.load(std::memory_order_relaxed)) close_if_idle(connection);
}

// The client was not told that the connection ends here: a request that it has already sent is still answered.
void HttpLoop::close_if_idle(Connection& connection) {
  if (!connection.dropped && connection.in_idle_list) read_ready(connection);
  if (!connection.dropped && connection.in_idle_list) drop(connection, /*reset=*/false);
}

// Closing with unread bytes in the kernel would reset the connection, and the client might lose our answer with it.
void HttpLoop::linger(Connection& connection) {
  connection.answer.reset();
  connection.input = std::string();
  set_idle(connection, false);
  if (shutdown(connection.fd, SHUT_WR) != 0) return drop(connection, /*reset=*/false);
  set_phase(connection, Connection::Phase::kLingering);
  set_interest(connection, EPOLLIN | EPOLLRDHUP);
  update_deadline(connection);
}

void HttpLoop::client_gone(Connection& connection) {
  if (connection.answer != nullptr && !connection.answer_complete) {
    std::function<void()> callback = connection.answer->leave();
    handler_.on_response(499);
    if (callback != nullptr) handler_.on_client_left(std::move(callback));
  }
  drop(connection, /*reset=*/true);
}

}  // namespace dsv3
