#include "files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "fault_guard.h"
#include "text.h"

namespace dsv3::weights {
namespace {

namespace fs = std::filesystem;

std::string errno_text() {
  return std::generic_category().message(errno);
}

Status bad(std::string message) {
  return {Code::kBadModelFile, std::move(message)};
}

int64_t modified_ns(const struct stat& info) {
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

/// Opens a regular file; a pipe must not make us wait, so it is opened non-blocking and then refused.
Result<int> open_regular(const std::string& path, struct stat* info) {
  if (path.find('\0') != std::string::npos) return bad("path " + in_quotes(path) + " holds a NUL byte");
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const Code code = errno == ENOENT || errno == ENOTDIR ? Code::kNotFound : Code::kBadModelFile;
    return Status(code, "cannot open " + path + ": " + errno_text());
  }
  if (fstat(fd, info) != 0 || !S_ISREG(info->st_mode)) {
    ::close(fd);
    return bad(path + " is not a regular file");
  }
  return fd;
}

/// 0 bytes at the end of the file, -1 with errno on an error.
ssize_t pread_some(int fd, void* out, size_t bytes, uint64_t offset) {
  constexpr size_t kMaxOnce = size_t{1} << 30;
  ssize_t got;
  do {
    got = ::pread(fd, out, std::min(bytes, kMaxOnce), static_cast<off_t>(offset));
  } while (got < 0 && errno == EINTR);
  return got;
}

Status pread_all(int fd, const std::string& name, void* out, size_t bytes, uint64_t offset) {
  auto* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = pread_some(fd, to, bytes, offset);
    if (got < 0) return bad("cannot read " + name + ": " + errno_text());
    if (got == 0) return bad(name + " shrank while it was being read");
    to += got;
    bytes -= static_cast<size_t>(got);
    offset += static_cast<uint64_t>(got);
  }
  return {};
}

bool inside(const std::string& path, const std::string& root) {
  return !root.empty() && path.size() > root.size() + 1 && path.starts_with(root) && path[root.size()] == '/';
}

}  // namespace

Result<std::string> read_small_file(const std::string& path, size_t max_bytes) {
  struct stat info;
  DSV3_ASSIGN(const int fd, open_regular(path, &info));
  const auto size = static_cast<uint64_t>(info.st_size);
  Status status;
  std::string text;
  if (size > max_bytes) {
    status = bad(path + " has " + std::to_string(size) + " bytes, allowed " + std::to_string(max_bytes));
  } else {
    text.resize(size);
    status = pread_all(fd, path, text.data(), size, 0);
  }
  ::close(fd);
  if (!status.ok()) return status;
  return text;
}

bool path_exists(const std::string& path) {
  struct stat info;
  return ::lstat(path.c_str(), &info) == 0;
}

Result<ModelFolder> ModelFolder::open(const std::string& path) {
  std::error_code error;
  ModelFolder folder;
  folder.path_ = path;
  const fs::path root = fs::canonical(path, error);
  if (error) return Status(Code::kNotFound, "model folder " + in_quotes(path) + ": " + error.message());
  if (!fs::is_directory(root, error))
    return Status(Code::kNotFound, "model folder " + in_quotes(path) + " is no folder");
  folder.root_ = root.string();
  if (root.parent_path().filename() == "snapshots") {
    const fs::path blobs = fs::canonical(root.parent_path().parent_path() / "blobs", error);
    if (!error) folder.blobs_root_ = blobs.string();
  }
  return folder;
}

Result<std::string> ModelFolder::resolve(std::string_view name) const {
  constexpr size_t kMaxNameBytes = 255;
  if (name.empty() || name.size() > kMaxNameBytes || name == "." || name == ".." ||
      name.find('/') != std::string_view::npos || name.find('\0') != std::string_view::npos) {
    return bad("shard name " + in_quotes(name) +
               " is not a plain file name: it must lie in the model folder itself (1 to " +
               std::to_string(kMaxNameBytes) + " bytes, no '/', no '..', no NUL)");
  }
  const std::string wanted = path_ + "/" + std::string(name);
  std::error_code error;
  const std::string real = fs::canonical(root_ + "/" + std::string(name), error).string();
  if (error) return bad("shard " + in_quotes(name) + " in " + path_ + ": " + error.message());
  if (inside(real, root_) || inside(real, blobs_root_)) return real;
  return bad("shard " + wanted + " is a link to " + in_quotes(real) + ", outside the model folder" +
             (blobs_root_.empty() ? "" : " and the blobs of its hub cache") + "; put the file itself in the folder");
}

Result<std::shared_ptr<MappedFile>> MappedFile::open(const std::string& path, const std::string& name) {
  install_fault_guard();
  struct stat info;
  DSV3_ASSIGN(const int fd, open_regular(path, &info));
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->name_ = name;
  file->fd_ = fd;
  file->size_bytes_ = static_cast<uint64_t>(info.st_size);
  file->modified_ns_ = modified_ns(info);
  if (file->size_bytes_ > 0) {
    void* data = ::mmap(nullptr, file->size_bytes_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) return bad("cannot map " + name + ": " + errno_text());
    file->data_ = static_cast<const uint8_t*>(data);
  }
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_bytes_);
  if (fd_ >= 0) ::close(fd_);
}

Status MappedFile::copy(uint64_t offset, void* out, size_t bytes) const {
  return pread_all(fd_, name_, out, bytes, offset);
}

void MappedFile::will_need(uint64_t offset, uint64_t bytes) const {
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t begin = offset / page * page;
  // Advice only: an error changes nothing.
  (void)::madvise(const_cast<uint8_t*>(data_ + begin), offset + bytes - begin, MADV_WILLNEED);
}

Status MappedFile::guarded_read(void (*body)(void*), void* context) const {
  if (!run_with_fault_guard(data_, size_bytes_, body, context)) {
    return bad(name_ + " shrank or could not be read while it was being loaded");
  }
  // Cut inside its last page a file reads as zeros, without a signal; rewritten in place it reads as anything.
  struct stat info;
  if (fstat(fd_, &info) != 0) return bad("cannot read " + name_ + ": " + errno_text());
  if (static_cast<uint64_t>(info.st_size) != size_bytes_ || modified_ns(info) != modified_ns_) {
    return bad(name_ + " was changed while it was being loaded (" + std::to_string(info.st_size) + " bytes now, " +
               std::to_string(size_bytes_) + " before)");
  }
  return {};
}

}  // namespace dsv3::weights
