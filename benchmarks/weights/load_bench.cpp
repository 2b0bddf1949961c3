// How fast a checkpoint loads from the page cache: a 1.2 GB one of DeepSeek-V3's real layer sizes (one dense layer, one
// with 8 experts), written to a temporary folder. The baselines, from the same run: pread() of the same files into one
// buffer, and memcpy() between buffers in the L2 cache's reach and out of it.
//
//   load_bench [threads] [folder]
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "dsv3/base/clock.h"
#include "dsv3/weights/weight_source.h"

namespace dsv3 {
namespace {

constexpr char kConfig[] =
    R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 1024,
  "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 2,
  "num_attention_heads": 128, "n_shared_experts": 1, "n_routed_experts": 8, "routed_scaling_factor": 2.5,
  "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
  "num_experts_per_tok": 2, "first_k_dense_replace": 1, "max_position_embeddings": 4096,
  "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})";
constexpr char kShard[] = "model.safetensors";

struct Piece {  // a unit of work for one thread
  std::string name;
  Slice slice;
  int64_t bytes;
};

/// The calling thread's buffer for one piece.
float* scratch() {
  static thread_local std::vector<float> buffer(1 << 20);
  return buffer.data();
}

int64_t element_count(const Slice& slice) {
  return slice.rows() * slice.cols();
}

/// Every tensor cut into runs of rows of about a megabyte, of the columns that rank 0 of `tp` has if it is cut that
/// way.
std::vector<Piece> pieces(const WeightSource& source, const ModelConfig& config, int64_t tp) {
  std::vector<Piece> out;
  for (const auto& tensor : expected_tensors(config)) {
    const TensorInfo& info = *source.find(tensor.name);
    const int64_t rows = info.shape.size() == 2 ? info.shape[0] : 1;
    if (tp > 1 && tensor.name.find("down_proj") == std::string::npos &&
        tensor.name.find("o_proj") == std::string::npos) {
      continue;
    }
    const int64_t cols = info.shape.back() / tp;
    const int64_t step = std::max<int64_t>(1, (1 << 20) / cols);
    for (int64_t row = 0; row < rows; row += step) {
      const Slice slice{row, std::min(row + step, rows), 0, cols};
      out.push_back({tensor.name, slice, element_count(slice) * static_cast<int64_t>(dtype_bytes(info.dtype))});
    }
  }
  return out;
}

/// Bytes a second of `work(index)` over [0, n) by `threads` threads; the best of three.
double rate(size_t n, int64_t bytes, int threads, const std::function<void(size_t)>& work) {
  double best = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    std::atomic<size_t> next{0};
    std::vector<std::thread> pool;
    const int64_t begin = now_us();
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back([&] {
        for (size_t i = next++; i < n; i = next++) work(i);
      });
    }
    for (auto& thread : pool) thread.join();
    best = std::max(best, 1e6 * static_cast<double>(bytes) / static_cast<double>(now_us() - begin));
  }
  return best;
}

void write_checkpoint(const WeightSource& source, const ModelConfig& config, const std::string& path) {
  std::vector<std::string> names;
  for (const auto& tensor : expected_tensors(config)) {
    names.push_back(tensor.name);
    if (source.find(tensor.name + "_scale_inv") != nullptr) names.push_back(tensor.name + "_scale_inv");
  }
  std::string header = "{";
  int64_t end = 0;
  const auto bytes_of = [](const TensorInfo& info) {
    int64_t bytes = static_cast<int64_t>(dtype_bytes(info.dtype));
    for (const int64_t dim : info.shape) bytes *= dim;
    return bytes;
  };
  for (const auto& name : names) {
    const TensorInfo& info = *source.find(name);
    std::string shape;
    for (const int64_t dim : info.shape) shape.append(shape.empty() ? "" : ",").append(std::to_string(dim));
    header.append(end == 0 ? "\"" : ",\"").append(name).append("\":{\"dtype\":\"").append(dtype_name(info.dtype));
    header.append("\",\"shape\":[").append(shape).append("],\"data_offsets\":[").append(std::to_string(end));
    end += bytes_of(info);
    header.append(",").append(std::to_string(end)).append("]}");
  }
  header += "}";
  std::ofstream file(path, std::ios::binary);
  const uint64_t length = header.size();
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file << header;
  for (const auto& name : names) {
    const TensorInfo& info = *source.find(name);
    const int64_t rows = info.shape.size() == 2 ? info.shape[0] : 1;
    std::vector<char> bytes(static_cast<size_t>(bytes_of(info)));
    if (!source.read_raw(name, {0, rows, 0, info.shape.back()}, bytes.data()).ok()) std::abort();
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
}

int bench_main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
  std::string folder = argc > 2 ? argv[2] : std::filesystem::temp_directory_path().string();
  folder += "/dsv3-load-bench-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return 2;
  const ModelConfig config = parse_model_config(kConfig).value();
  const std::string path = folder + "/" + kShard;
  const auto dummy = make_dummy_weights(config, 1);
  const int64_t begin = now_us();
  write_checkpoint(*dummy, config, path);
  std::printf("%d threads; %.2f GB written with random weights in %.1f s\n", threads,
              1e-9 * static_cast<double>(dummy->total_bytes()), 1e-6 * static_cast<double>(now_us() - begin));
  {
    const int64_t opened = now_us();
    const auto source = open_checkpoint(folder, config, nullptr);
    if (!source.ok()) return 2;
    std::printf("open and check: %.2f ms\n", 1e-3 * static_cast<double>(now_us() - opened));
    const auto run = [&](const char* what, const WeightSource& from, int64_t tp, bool raw) {
      const auto work = pieces(from, config, tp);
      int64_t bytes = 0;
      for (const auto& piece : work) bytes += piece.bytes;
      const double got = rate(work.size(), bytes, threads, [&](size_t i) {
        const Status status = raw ? from.read_raw(work[i].name, work[i].slice, scratch())
                                  : from.read_f32(work[i].name, work[i].slice, scratch());
        if (!status.ok()) std::abort();
      });
      std::printf("%-44s %6.2f GB/s of file\n", what, 1e-9 * got);
    };
    run("read_raw, all tensors", **source, 1, true);
    run("read_f32, all tensors", **source, 1, false);
    run("read_raw, columns of 1 of 8 ranks", **source, 8, true);
    run("read_f32, columns of 1 of 8 ranks", **source, 8, false);
    run("random weights, read_f32", *dummy, 1, false);

    constexpr size_t kChunk = 1 << 20;
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const auto chunks = static_cast<size_t>(dummy->total_bytes()) / kChunk;
    const double pread_rate = rate(chunks, static_cast<int64_t>(chunks * kChunk), threads, [&](size_t i) {
      if (::pread(fd, scratch(), kChunk, static_cast<off_t>(i * kChunk)) <= 0) std::abort();
    });
    ::close(fd);
    std::printf("%-44s %6.2f GB/s\n", "baseline: pread() of 1 MB into one buffer", 1e-9 * pread_rate);
    std::vector<char> memory(chunks * kChunk, 1);
    const double copy_rate = rate(chunks, static_cast<int64_t>(chunks * kChunk), threads,
                                  [&](size_t i) { std::memcpy(scratch(), memory.data() + i * kChunk, kChunk); });
    std::printf("%-44s %6.2f GB/s\n", "baseline: memcpy() of 1 MB into one buffer", 1e-9 * copy_rate);
  }
  std::filesystem::remove_all(folder);
  return 0;
}

}  // namespace
}  // namespace dsv3

int main(int argc, char** argv) {
  return dsv3::bench_main(argc, argv);
}
