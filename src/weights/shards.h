// The shards of a checkpoint: which file holds which tensor, with all headers proven. Reads no tensor's data.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "dsv3/base/status.h"
#include "files.h"
#include "safetensors_header.h"

namespace dsv3::weights {

/// Parses model.safetensors.index.json: tensor name -> shard name. Names are not resolved here.
Result<std::unordered_map<std::string, std::string>> parse_checkpoint_index(std::string_view json);

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <class T>
using StringMap = std::unordered_map<std::string, T, StringHash, std::equal_to<>>;

/// Opens, in this order of preference: model.safetensors.index.json and the shards it names; model.safetensors;
/// all of model-XXXXX-of-YYYYY.safetensors.
class ShardSet {
 public:
  struct Location {
    std::shared_ptr<MappedFile> file;
    SafetensorsHeader::Tensor tensor;
    uint64_t data_at = 0;  ///< bytes from the beginning of the file to the tensor's
  };

  static Result<ShardSet> open(const std::string& model_dir);

  bool contains(std::string_view name) const { return shard_of_.find(name) != shard_of_.end(); }
  /// The tensor, which contains() must have: opens its shard if no one asked for it before. An index that names a
  /// shard without the tensor is a fault. Strings in the result live as long as this object.
  Result<Location> locate(std::string_view name);

  const StringMap<int>& names() const { return shard_of_; }

 private:
  struct Shard {
    std::string name;
    std::shared_ptr<MappedFile> file;  // null until needed
    SafetensorsHeader header;
    uint64_t data_at = 0;
  };

  explicit ShardSet(ModelFolder folder) : folder_(std::move(folder)) {}
  Status load_index();
  Status load_without_index(const std::vector<std::string>& names);
  Result<std::vector<std::string>> list_shards() const;
  int add_shard(const std::string& name);
  Status open_shard(Shard* shard);

  ModelFolder folder_;
  std::vector<Shard> shards_;
  StringMap<int> shard_of_;
};

}  // namespace dsv3::weights
