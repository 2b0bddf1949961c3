#include "host_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace dsv3 {
namespace {

class HostMemory : public ::testing::Test {
 protected:
  void SetUp() override { root_ = std::filesystem::temp_directory_path() / ("dsv3_host_memory_" + std::to_string(::getpid())); }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  int64_t available() const { return available_memory_bytes(root_.string()); }
  std::filesystem::path root_;
};

TEST_F(HostMemory, NothingReadableIsZero) { EXPECT_EQ(available(), 0); }

TEST_F(HostMemory, MeminfoAlone) {
  write("proc/meminfo", "MemTotal:       16000 kB\nMemFree:  1 kB\nMemAvailable:    8000 kB\n");
  EXPECT_EQ(available(), 8000 * 1024);
}

TEST_F(HostMemory, TheTightestCgroupWins) {
  write("proc/meminfo", "MemAvailable: 8000000 kB\n");
  write("proc/self/cgroup", "0::/pod/box\n");
  write("sys/fs/cgroup/pod/box/memory.max", "max\n");
  write("sys/fs/cgroup/pod/box/memory.current", "100\n");
  EXPECT_EQ(available(), int64_t{8000000} * 1024);
  write("sys/fs/cgroup/pod/memory.max", "1000000\n");
  write("sys/fs/cgroup/pod/memory.current", "600000\n");
  EXPECT_EQ(available(), 400000);
  write("sys/fs/cgroup/pod/memory.stat", "anon 5\ninactive_file 500000\n");
  EXPECT_EQ(available(), 900000);
  write("sys/fs/cgroup/pod/memory.current", "9000000\n");
  EXPECT_EQ(available(), 0);
}

TEST_F(HostMemory, VersionOne) {
  write("proc/meminfo", "MemAvailable: 8000000 kB\n");
  write("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/abc\n");
  write("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "5000000\n");
  write("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "1000000\n");
  EXPECT_EQ(available(), 4000000);
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", "10\n");
  EXPECT_EQ(available(), 4000000);
}

TEST_F(HostMemory, OddFilesAreNoLimit) {
  write("proc/meminfo", "MemAvailable: 99999999999999999999999 kB\nMemAvailable: 7 kB\n");
  write("proc/self/cgroup", "\n:\n0:\n0::\n0::relative\n0::/../..\n0::/" + std::string(3000, '/') + "\n");
  EXPECT_GE(available(), 0);
  EXPECT_GT(available_memory_bytes(), 0);  // this machine
}

}  // namespace
}  // namespace dsv3
