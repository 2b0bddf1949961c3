// Small facts about sequences, and the making of a request.
#include "sequence.h"

#include <algorithm>
#include <random>

namespace dsv3::scheduling {

int32_t Sequence::prompt_tokens() const {
  return request->prompt_tokens();
}

int32_t Sequence::max_length() const {
  return prompt_tokens() + static_cast<int32_t>(request->body.max_new_tokens);
}

std::span<const int32_t> Sequence::ids(int32_t start, int32_t count, std::vector<int32_t>* scratch) const {
  const auto& prompt = request->body.prompt_ids;
  const int32_t prompt_end = prompt_tokens();
  const auto from = static_cast<size_t>(start), n = static_cast<size_t>(count);
  if (start + count <= prompt_end) return std::span(prompt).subspan(from, n);
  if (start >= prompt_end) return std::span(output).subspan(from - prompt.size(), n);
  scratch->assign(prompt.begin() + start, prompt.end());
  scratch->insert(scratch->end(), output.begin(), output.begin() + (start + count - prompt_end));
  return *scratch;
}

uint64_t Sequence::block_hash(int32_t index, const PrefixHasher& hasher) {
  const auto& known = request->prompt_hashes;
  const auto i = static_cast<size_t>(index);
  if (i < known.size()) return known[i];
  std::vector<int32_t> scratch;
  while (known.size() + output_hashes.size() <= i) {
    const auto next = static_cast<int32_t>(known.size() + output_hashes.size());
    const uint64_t parent = !output_hashes.empty() ? output_hashes.back()
                            : !known.empty()       ? known.back()
                                                   : hasher.root(request->salt);
    const int32_t tokens = hasher.block_tokens();
    output_hashes.push_back(hasher.block(parent, ids(next * tokens, tokens, &scratch)));
  }
  return output_hashes[i - known.size()];
}

bool ranks_before(const Sequence& a, const Sequence& b) {
  if (a.request->body.priority != b.request->body.priority) return a.request->body.priority > b.request->body.priority;
  if (a.request->id != b.request->id) return a.request->id < b.request->id;
  return a.choice < b.choice;
}

int32_t Request::logprobs_from() const {
  if (body.prompt_logprobs_from < 0) return -1;
  const int64_t last_known = int64_t{body.prompt_logprobs_from} + static_cast<int64_t>(prompt_logprobs.size());
  return last_known >= prompt_tokens() - 1 ? -1 : static_cast<int32_t>(last_known);
}

std::shared_ptr<Request> make_request(uint64_t id, GenerationRequest body, std::shared_ptr<GenerationSink> sink,
                                      const PrefixHasher& hasher, bool prefix_cache, int64_t now_us) {
  auto request = std::make_shared<Request>();
  request->id = id;
  request->sink = std::move(sink);
  request->submit_us = now_us;
  request->open = body.n;
  // Choices share their prompt even without a cache: a salt that nobody else has keeps others out.
  request->salt = prefix_cache ? body.cache_salt : "request " + std::to_string(id);
  request->prompt_hashes = hasher.chain(request->salt, body.prompt_ids);

  if (!body.seed) {
    std::random_device device;
    body.seed = (uint64_t{device()} << 32) | device();
  }
  if (auto& suppressed = body.sampling.suppressed_ids; body.sampling.min_tokens > 0) {
    suppressed.insert(suppressed.end(), body.stop_ids.begin(), body.stop_ids.end());
    std::sort(suppressed.begin(), suppressed.end());
    suppressed.erase(std::unique(suppressed.begin(), suppressed.end()), suppressed.end());
  }
  request->sequences.resize(static_cast<size_t>(body.n));
  for (int32_t choice = 0; choice < body.n; ++choice) {
    Sequence& sequence = request->sequences[static_cast<size_t>(choice)];
    sequence.request = request.get();
    sequence.choice = choice;
    sequence.seed = derive_seed(*body.seed, choice);
  }
  request->body = std::move(body);
  return request;
}

}  // namespace dsv3::scheduling
