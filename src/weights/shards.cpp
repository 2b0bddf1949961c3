#include "shards.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "dsv3/base/json.h"
#include "text.h"

namespace dsv3::weights {
namespace {

constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr char kSingleName[] = "model.safetensors";
constexpr size_t kMaxIndexBytes = 64u << 20;

Status bad(std::string message) {
  return {Code::kBadModelFile, std::move(message)};
}

/// Reads the numbers of model-00001-of-000163.safetensors; false for any other name.
bool parse_shard_name(std::string_view name, int* number, int* count) {
  constexpr std::string_view kPrefix = "model-", kMiddle = "-of-", kSuffix = ".safetensors";
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return false;
  name.remove_prefix(kPrefix.size());
  name.remove_suffix(std::min(name.size(), kSuffix.size()));
  const size_t middle = name.find(kMiddle);
  if (middle == std::string_view::npos) return false;
  const auto number_of = [](std::string_view digits, int* out) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), *out);
    return error == std::errc() && end == digits.data() + digits.size() && !digits.empty() && *out >= 1;
  };
  return number_of(name.substr(0, middle), number) && number_of(name.substr(middle + kMiddle.size()), count);
}

}  // namespace

Result<std::unordered_map<std::string, std::string>> parse_checkpoint_index(std::string_view json) {
  auto parsed = parse_json(json, {.max_depth = 8, .max_bytes = kMaxIndexBytes});
  if (!parsed.ok()) return bad(std::string(kIndexName) + ": " + parsed.status().message());
  const Json* map = nullptr;
  if (parsed->is_object()) {
    if (const auto found = parsed->find("weight_map"); found != parsed->end() && found->is_object()) map = &*found;
  }
  if (map == nullptr) return bad(std::string(kIndexName) + ": no object \"weight_map\"");
  if (map->empty()) return bad(std::string(kIndexName) + ": \"weight_map\" is empty");
  std::unordered_map<std::string, std::string> shard_of;
  shard_of.reserve(map->size());
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string())
      return bad(std::string(kIndexName) + ": the shard of tensor " + in_quotes(tensor) + " is no string");
    shard_of.emplace(tensor, shard.get_ref<const std::string&>());
  }
  return shard_of;
}

Result<ShardSet> ShardSet::open(const std::string& model_dir) {
  DSV3_ASSIGN(ModelFolder folder, ModelFolder::open(model_dir));
  ShardSet shards(std::move(folder));
  if (path_exists(model_dir + "/" + kIndexName)) {
    DSV3_TRY(shards.load_index());
  } else if (path_exists(model_dir + "/" + kSingleName)) {
    DSV3_TRY(shards.load_without_index({kSingleName}));
  } else {
    DSV3_ASSIGN(const auto names, shards.list_shards());
    DSV3_TRY(shards.load_without_index(names));
  }
  return shards;
}

int ShardSet::add_shard(const std::string& name) {
  shards_.push_back({name, nullptr, {}, 0});
  return static_cast<int>(shards_.size()) - 1;
}

Status ShardSet::load_index() {
  DSV3_ASSIGN(const std::string path, folder_.resolve(kIndexName));
  DSV3_ASSIGN(const std::string text, read_small_file(path, kMaxIndexBytes));
  DSV3_ASSIGN(const auto index, parse_checkpoint_index(text));
  StringMap<int> number_of;
  shard_of_.reserve(index.size());
  for (const auto& [tensor, shard] : index) {
    const auto found = number_of.find(shard);
    const int number = found != number_of.end() ? found->second : add_shard(shard);
    if (found == number_of.end()) {
      DSV3_TRY(folder_.resolve(shard).status());  // every name, needed or not, before anything is opened
      number_of.emplace(shard, number);
    }
    shard_of_.emplace(tensor, number);
  }
  return {};
}

Result<std::vector<std::string>> ShardSet::list_shards() const {
  std::vector<std::string> names;
  int expected = 0;
  std::error_code error;
  std::filesystem::directory_iterator entry(folder_.path(), error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    int number, count;
    if (!parse_shard_name(name, &number, &count)) continue;
    if (expected == 0) expected = count;
    if (count != expected) {
      return bad(folder_.path() + " holds shards of two checkpoints: of " + std::to_string(expected) + " and of " +
                 std::to_string(count) + ", and no " + kIndexName + " to choose");
    }
    names.push_back(name);
  }
  if (error) return bad("cannot list " + folder_.path() + ": " + error.message());
  if (names.empty()) {
    return Status(Code::kNotFound, "no weights in " + folder_.path() + ": neither " + kIndexName + " nor " +
                                       kSingleName + " nor model-00001-of-0000N.safetensors");
  }
  if (names.size() != static_cast<size_t>(expected)) {
    return bad(folder_.path() + " holds " + std::to_string(names.size()) + " of " + std::to_string(expected) +
               " shards and no " + kIndexName);
  }
  std::sort(names.begin(), names.end());
  return names;
}

Status ShardSet::load_without_index(const std::vector<std::string>& names) {
  for (const auto& name : names) {
    const int number = add_shard(name);
    Shard& shard = shards_.back();
    DSV3_TRY(open_shard(&shard));
    for (size_t i = 0; i < shard.header.size(); ++i) {
      const auto tensor = shard.header.tensor(i);
      const auto [at, added] = shard_of_.emplace(tensor.name, number);
      if (!added) {
        return bad("tensor " + in_quotes(tensor.name) +
                   " lies in two shards: " + shards_[static_cast<size_t>(at->second)].name + " and " + name);
      }
    }
  }
  return {};
}

Status ShardSet::open_shard(Shard* shard) {
  const auto in_shard = [&](const Status& status) { return bad(shard->name + ": " + status.message()); };
  DSV3_ASSIGN(const std::string path, folder_.resolve(shard->name));
  DSV3_ASSIGN(auto file, MappedFile::open(path, shard->name));
  char first[kLengthBytes];
  const size_t first_bytes = std::min<uint64_t>(sizeof first, file->size_bytes());
  DSV3_TRY(file->copy(0, first, first_bytes));
  const auto header_bytes = safetensors_header_bytes({first, first_bytes}, file->size_bytes());
  if (!header_bytes.ok()) return in_shard(header_bytes.status());
  std::string text(*header_bytes, '\0');
  DSV3_TRY(file->copy(kLengthBytes, text.data(), text.size()));
  shard->data_at = kLengthBytes + *header_bytes;
  auto header = SafetensorsHeader::parse(std::move(text), file->size_bytes() - shard->data_at);
  if (!header.ok()) return in_shard(header.status());
  shard->header = std::move(header).value();
  shard->file = std::move(file);
  return {};
}

Result<ShardSet::Location> ShardSet::locate(std::string_view name) {
  const auto found = shard_of_.find(name);
  DSV3_CHECK(found != shard_of_.end(), "locate() of a tensor that is not there");
  Shard& shard = shards_[static_cast<size_t>(found->second)];
  if (shard.file == nullptr) DSV3_TRY(open_shard(&shard));
  auto tensor = shard.header.find(name);
  if (!tensor) return bad("tensor " + in_quotes(name) + " is not in " + shard.name + ", where the index says it is");
  const uint64_t data_at = shard.data_at + tensor->begin;
  return Location{shard.file, std::move(*tensor), data_at};
}

}  // namespace dsv3::weights
