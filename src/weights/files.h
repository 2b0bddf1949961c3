// Opening files of a model folder: small ones read whole, shards found without leaving the folder, shards mapped.
// Knows nothing of their formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "dsv3/base/status.h"

namespace dsv3::weights {

/// The whole of a regular file of at most `max_bytes`. kNotFound if there is none; kBadModelFile for folders, pipes,
/// devices, files over the limit and read errors.
Result<std::string> read_small_file(const std::string& path, size_t max_bytes);

/// True if `path` names anything at all.
bool path_exists(const std::string& path);

/// A model folder and the places where its files may really lie.
///
/// A file must be named by a plain name (no '/', no NUL, at most 255 bytes), and what that name resolves to, symlinks
/// followed, must lie inside the folder. One other place is legal: a folder `.../snapshots/REV` is a snapshot of a hub
/// cache, whose files are links to `.../blobs/HASH`; there `.../blobs` is allowed too.
class ModelFolder {
 public:
  static Result<ModelFolder> open(const std::string& path);

  /// The resolved path of the file `name`; refusals are kBadModelFile and say what the rule is.
  Result<std::string> resolve(std::string_view name) const;

  const std::string& path() const { return path_; }  ///< as the operator wrote it

 private:
  std::string path_;
  std::string root_;        // resolved, without a trailing slash
  std::string blobs_root_;  // resolved; empty if the folder is no snapshot
};

/// A shard, mapped read-only. The mapping stays as long as the object; another process may shrink the file meanwhile,
/// so bytes may only be touched inside guarded_read().
class MappedFile {
 public:
  /// `name` is used in messages.
  static Result<std::shared_ptr<MappedFile>> open(const std::string& path, const std::string& name);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& name() const { return name_; }
  uint64_t size_bytes() const { return size_bytes_; }
  const uint8_t* data() const { return data_; }

  /// Copies [offset, offset + bytes) by pread: safe without a guard, for headers.
  Status copy(uint64_t offset, void* out, size_t bytes) const;

  /// Asks the kernel to read [offset, offset + bytes) ahead.
  void will_need(uint64_t offset, uint64_t bytes) const;

  /// Calls body(context) where it may touch data(): a file that shrinks or cannot be read meanwhile gives
  /// kBadModelFile, and so does one whose size or modification time changed since it was opened. `body` may be left in
  /// the middle: it must own nothing (no destructors, no locks).
  Status guarded_read(void (*body)(void*), void* context) const;

 private:
  MappedFile() = default;

  std::string name_;
  int fd_ = -1;
  const uint8_t* data_ = nullptr;
  uint64_t size_bytes_ = 0;
  int64_t modified_ns_ = 0;
};

}  // namespace dsv3::weights
