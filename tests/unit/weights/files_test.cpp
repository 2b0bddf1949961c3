#include "files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "checkpoint_files.h"
#include "fault_guard.h"

namespace dsv3::weights {
namespace {

namespace fs = std::filesystem;
using test::TempFolder;
using testing::HasSubstr;

std::string resolve(const std::string& folder, std::string_view name) {
  const auto opened = ModelFolder::open(folder);
  if (!opened.ok()) return opened.status().message();
  const auto path = opened->resolve(name);
  EXPECT_TRUE(path.ok() || path.status().code() == Code::kBadModelFile);
  return path.ok() ? *path : path.status().message();
}

TEST(ModelFolder, NamesCannotLeaveIt) {
  TempFolder outside, folder;
  outside.write("x.safetensors", "secret");
  folder.write("x.safetensors", "ours");
  fs::create_directory(folder.file("sub"));
  fs::create_symlink(outside.file("x.safetensors"), folder.file("link"));
  fs::create_symlink("../" + fs::path(outside.path()).filename().string() + "/x.safetensors", folder.file("relative"));
  fs::create_symlink("x.safetensors", folder.file("legal"));
  fs::create_symlink("loop", folder.file("loop"));
  EXPECT_EQ(resolve(folder.path(), "x.safetensors"), fs::canonical(folder.file("x.safetensors")).string());
  EXPECT_EQ(resolve(folder.path(), "legal"), fs::canonical(folder.file("x.safetensors")).string());
  const std::string long_name(4096, 'a');
  for (const std::string_view name :
       {std::string_view("../x"), std::string_view("/etc/passwd"), std::string_view(".."), std::string_view("."),
        std::string_view(""), std::string_view("sub/../x.safetensors"), std::string_view("sub/"),
        std::string_view("x.safetensors\0y", 15), std::string_view(long_name)}) {
    EXPECT_THAT(resolve(folder.path(), name), HasSubstr("not a plain file name")) << name;
  }
  EXPECT_THAT(resolve(folder.path(), "link"), HasSubstr("outside the model folder"));
  EXPECT_THAT(resolve(folder.path(), "relative"), HasSubstr("outside the model folder"));
  EXPECT_THAT(resolve(folder.path(), "loop"), HasSubstr("loop"));
  EXPECT_THAT(resolve(folder.path(), "absent"), HasSubstr("No such file"));
}

TEST(ModelFolder, AFolderWhoseNameBeginsTheSameIsOutside) {
  TempFolder parent;
  fs::create_directory(parent.file("model"));
  fs::create_directory(parent.file("model2"));
  parent.write("model2/x", "");
  fs::create_symlink("../model2/x", parent.file("model/x"));
  EXPECT_THAT(resolve(parent.file("model"), "x"), HasSubstr("outside"));
}

TEST(ModelFolder, HubCachesMayLinkToTheirBlobs) {
  TempFolder hub;
  fs::create_directories(hub.file("snapshots/0123"));
  fs::create_directories(hub.file("blobs"));
  fs::create_directories(hub.file("refs"));
  hub.write("blobs/cafe", "blob");
  hub.write("refs/main", "0123");
  fs::create_symlink("../../blobs/cafe", hub.file("snapshots/0123/model.safetensors"));
  fs::create_symlink("../../refs/main", hub.file("snapshots/0123/other"));
  EXPECT_EQ(resolve(hub.file("snapshots/0123"), "model.safetensors"), fs::canonical(hub.file("blobs/cafe")).string());
  EXPECT_THAT(resolve(hub.file("snapshots/0123"), "other"), HasSubstr("outside the model folder and the blobs"));
  // Through a link to the snapshot as well.
  fs::create_symlink("snapshots/0123", hub.file("current"));
  EXPECT_EQ(resolve(hub.file("current"), "model.safetensors"), fs::canonical(hub.file("blobs/cafe")).string());
}

TEST(ModelFolder, MustBeAFolder) {
  TempFolder folder;
  folder.write("file", "");
  EXPECT_EQ(ModelFolder::open(folder.file("file")).status().code(), Code::kNotFound);
  EXPECT_EQ(ModelFolder::open(folder.file("absent")).status().code(), Code::kNotFound);
}

TEST(ReadSmallFile, RefusesWhatIsNoFile) {
  TempFolder folder;
  folder.write("file", "12345");
  EXPECT_EQ(*read_small_file(folder.file("file"), 5), "12345");
  EXPECT_THAT(read_small_file(folder.file("file"), 4).status().message(), HasSubstr("5 bytes, allowed 4"));
  EXPECT_EQ(read_small_file(folder.file("absent"), 5).status().code(), Code::kNotFound);
  EXPECT_EQ(read_small_file(folder.path(), 5).status().code(), Code::kBadModelFile);
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  EXPECT_THAT(read_small_file(folder.file("pipe"), 5).status().message(), HasSubstr("not a regular file"));
  EXPECT_EQ(read_small_file("/dev/zero", 5).status().code(), Code::kBadModelFile);
}

struct Sum {
  const uint8_t* data;
  uint64_t bytes;
  uint64_t sum;
};
void add_up(void* context) {
  auto& job = *static_cast<Sum*>(context);
  const volatile uint8_t* data = job.data;
  for (uint64_t i = 0; i < job.bytes; i += 512) job.sum += data[i];
}

TEST(MappedFile, SurvivesAFileThatShrinks) {
  TempFolder folder;
  constexpr uint64_t kBytes = 1 << 20;
  folder.write("shard", std::string(kBytes, '\1'));
  const auto file = MappedFile::open(folder.file("shard"), "shard");
  ASSERT_TRUE(file.ok());
  Sum job{(*file)->data(), kBytes, 0};
  EXPECT_TRUE((*file)->guarded_read(add_up, &job).ok());
  EXPECT_EQ(job.sum, kBytes / 512);
  for (int repeat = 0; repeat < 3; ++repeat) {  // the signal must not stay blocked after the first
    fs::resize_file(folder.file("shard"), kBytes / 2);
    const Status status = (*file)->guarded_read(add_up, &job);
    EXPECT_EQ(status.code(), Code::kBadModelFile);
    EXPECT_THAT(status.message(), HasSubstr("shard shrank"));
  }
  char byte;
  EXPECT_THAT((*file)->copy(kBytes - 1, &byte, 1).message(), HasSubstr("shrank"));
}

TEST(MappedFile, NoticesAFileCutInsideItsLastPage) {
  TempFolder folder;
  folder.write("shard", std::string(4096 + 100, '\1'));
  const auto file = MappedFile::open(folder.file("shard"), "shard");
  ASSERT_TRUE(file.ok());
  fs::resize_file(folder.file("shard"), 4096 + 50);  // reads as zeros, without a signal
  Sum job{(*file)->data(), (*file)->size_bytes(), 0};
  EXPECT_THAT((*file)->guarded_read(add_up, &job).message(), HasSubstr("was changed while it was being loaded"));
}

TEST(MappedFile, NoticesAFileWrittenInPlace) {
  TempFolder folder;
  folder.write("shard", std::string(100, '\1'));
  fs::last_write_time(folder.file("shard"), fs::file_time_type::clock::now() - std::chrono::hours(1));
  const auto file = MappedFile::open(folder.file("shard"), "shard");
  ASSERT_TRUE(file.ok());
  folder.write("shard", std::string(100, '\2'));
  Sum job{(*file)->data(), 100, 0};
  EXPECT_THAT((*file)->guarded_read(add_up, &job).message(), HasSubstr("was changed"));
}

TEST(MappedFile, OpensEmptyFilesAndRefusesFolders) {
  TempFolder folder;
  folder.write("empty", "");
  const auto empty = MappedFile::open(folder.file("empty"), "empty");
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ((*empty)->size_bytes(), 0u);
  EXPECT_FALSE(MappedFile::open(folder.path(), "folder").ok());
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they report the signal instead of dying of it
void touch_a_cut_file_unguarded() {
  TempFolder folder;
  folder.write("shard", std::string(1 << 16, '\1'));
  const auto file = MappedFile::open(folder.file("shard"), "shard");
  fs::resize_file(folder.file("shard"), 0);
  fs::remove_all(folder.path());
  Sum job{(*file)->data(), 1, 0};
  add_up(&job);
}

TEST(FaultGuardDeathTest, OtherFaultsEndTheProcessAsBefore) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        install_fault_guard();
        std::raise(SIGBUS);
      },
      testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(touch_a_cut_file_unguarded(), testing::KilledBySignal(SIGBUS), "");
}

std::sig_atomic_t g_seen = 0;
TEST(FaultGuardDeathTest, HandsForeignFaultsToTheHandlerBefore) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        std::signal(SIGBUS, [](int) { g_seen = 1; });
        install_fault_guard();
        std::raise(SIGBUS);
        _exit(g_seen == 1 ? 17 : 1);
      },
      testing::ExitedWithCode(17), "");
}
#endif

}  // namespace
}  // namespace dsv3::weights
