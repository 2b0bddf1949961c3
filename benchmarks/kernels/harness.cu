// Timing, random device data and the report of kernel benchmarks (harness.h).
#include "harness.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <thread>
#include <utility>

#include "kernels/cuda/common/cuda_status.h"

namespace dsv3::cuda::bench {
namespace {

constexpr std::chrono::milliseconds kPause{80};  // before each measurement

/// Stream, graph and events of one measurement.
struct Chain {
  ~Chain() {
    for (cudaEvent_t event : events) cudaEventDestroy(event);
    if (exec != nullptr) cudaGraphExecDestroy(exec);
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  std::vector<cudaEvent_t> events;
};

Status capture(Chain& chain, int launches, const std::function<Status(int, Stream)>& enqueue) {
  DSV3_TRY(cuda_status(cudaStreamBeginCapture(chain.stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture"));
  Status status;
  for (int i = 0; i < launches && status.ok(); ++i) status = enqueue(i, chain.stream);
  const Status ended = cuda_status(cudaStreamEndCapture(chain.stream, &chain.graph), "cudaStreamEndCapture");
  return status.ok() ? ended : status;
}

void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "kernel_bench: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

/// A 32-bit mix of (index, seed): every element its own stream of random bits.
__device__ uint32_t mix(uint64_t index, uint32_t seed) {
  uint64_t z = index * 0x9e3779b97f4a7c15ull + seed * 0xd1342543de82ef95ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>(z >> 32);
}
/// Two values of N(0, 1) by Box and Muller.
__device__ float2 normal_pair(uint64_t index, uint32_t seed) {
  const float u = (static_cast<float>(mix(2 * index, seed) >> 8) + 1.0f) * 0x1p-24f;  // (0, 1]
  const float angle = static_cast<float>(mix(2 * index + 1, seed) >> 8) * (6.2831853f * 0x1p-24f);
  const float radius = sqrtf(-2.0f * __logf(u));
  return {radius * __cosf(angle), radius * __sinf(angle)};
}

/// Each thread fills words of 4 bytes: 4 e4m3, 2 BF16 or one float.
__global__ void fill_kernel(uint32_t* words, int64_t count, Buffer::Fill fill, uint32_t seed) {
  constexpr float kE4m3Sigma = 100.0f;  // as quantized activations, whose largest of 128 is 448
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const float2 a = normal_pair(2 * i, seed);
    uint32_t word = 0;
    if (fill == Buffer::Fill::kNormalE4m3) {
      const float2 b = normal_pair(2 * i + 1, seed);
      const float values[4] = {a.x, a.y, b.x, b.y};
      for (int j = 0; j < 4; ++j) {
        word |= static_cast<uint32_t>(__nv_cvt_float_to_fp8(values[j] * kE4m3Sigma, __NV_SATFINITE, __NV_E4M3)) << (8 * j);
      }
    } else if (fill == Buffer::Fill::kNormalBf16) {
      word = __bfloat16_as_ushort(__float2bfloat16_rn(a.x)) | static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(a.y))) << 16;
    } else if (fill == Buffer::Fill::kNormalF32) {
      word = __float_as_uint(a.x);
    } else {  // scales: positive, around 1e-3
      word = __float_as_uint(5e-4f + 1e-3f * static_cast<float>(mix(i, seed) >> 8) * 0x1p-24f);
    }
    words[i] = word;
  }
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string ratio(double numerator, double denominator) {
  if (numerator <= 0 || denominator <= 0) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f", numerator / denominator);
  return text;
}

std::string micros(double us) {
  if (us <= 0) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), us < 100 ? "%.2f" : "%.1f", us);
  return text;
}

double of_limit(const Row& row) { return row.us > 0 ? row.limit_us / row.us : 0; }

}  // namespace

Result<Timing> time_chain(int launches, int replays, const std::function<Status(int, Stream)>& enqueue) {
  if (launches < 1 || replays < 1) return Status(Code::kInternal, "time_chain: nothing to time");
  Chain chain;
  DSV3_TRY(cuda_status(cudaStreamCreateWithFlags(&chain.stream, cudaStreamNonBlocking), "cudaStreamCreate"));
  // Once outside of a graph: kernels are loaded, plans made, faults shown where they happen.
  DSV3_TRY(enqueue(0, chain.stream));
  DSV3_TRY(cuda_status(cudaStreamSynchronize(chain.stream), "the first launch"));
  DSV3_TRY(capture(chain, launches, enqueue));
  DSV3_TRY(cuda_status(cudaGraphInstantiate(&chain.exec, chain.graph, 0), "cudaGraphInstantiate"));
  DSV3_TRY(cuda_status(cudaGraphLaunch(chain.exec, chain.stream), "cudaGraphLaunch"));  // warms up
  DSV3_TRY(cuda_status(cudaStreamSynchronize(chain.stream), "the first replay"));
  chain.events.resize(static_cast<size_t>(replays) + 2, nullptr);
  for (cudaEvent_t& event : chain.events) DSV3_TRY(cuda_status(cudaEventCreate(&event), "cudaEventCreate"));
  std::this_thread::sleep_for(kPause);

  // All replays are queued at once, so that the host's part of a launch hides behind the replay before; the first, which
  // has nothing to hide behind, does not count.
  for (size_t i = 0; i < chain.events.size(); ++i) {
    if (i > 0) DSV3_TRY(cuda_status(cudaGraphLaunch(chain.exec, chain.stream), "cudaGraphLaunch"));
    DSV3_TRY(cuda_status(cudaEventRecord(chain.events[i], chain.stream), "cudaEventRecord"));
  }
  DSV3_TRY(cuda_status(cudaStreamSynchronize(chain.stream), "replays"));
  std::vector<double> us;
  for (size_t i = 2; i < chain.events.size(); ++i) {
    float ms = 0;
    DSV3_TRY(cuda_status(cudaEventElapsedTime(&ms, chain.events[i - 1], chain.events[i]), "cudaEventElapsedTime"));
    us.push_back(static_cast<double>(ms) * 1e3 / launches);
  }
  std::sort(us.begin(), us.end());
  Timing timing;
  timing.us = us.size() % 2 == 1 ? us[us.size() / 2] : (us[us.size() / 2 - 1] + us[us.size() / 2]) / 2;
  timing.spread = (us.back() - us.front()) / timing.us;
  return timing;
}

Report::Report(std::string path, std::string commit) : path_(std::move(path)), commit_(std::move(commit)) {
  cudaDeviceProp properties{};
  must(cudaGetDeviceProperties(&properties, 0), "no GPU");
  gpu_ = properties.name;
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::strftime(text, sizeof(text), "%Y-%m-%d", &utc);
  date_ = text;
}

void Report::add(const Row& row) {
  rows_.push_back(row);
  if (path_.empty()) return;
  char numbers[320];
  std::snprintf(numbers, sizeof(numbers), R"("us":%.3f,"tflops":%.1f,"gbps":%.0f,"limit_us":%.3f,"of_limit":%.3f)", row.us,
                row.us > 0 ? row.flops / row.us * 1e-6 : 0, row.us > 0 ? row.bytes / row.us * 1e-3 : 0, row.limit_us, of_limit(row));
  char others[64];
  std::ofstream file(path_, std::ios::app);
  file << R"({"gpu":")" << escaped(gpu_) << R"(","date":")" << date_ << R"(","commit":")" << escaped(commit_) << R"(","kernel":")"
       << escaped(row.kernel) << R"(","shape":")" << escaped(row.shape) << R"(",)" << numbers;
  std::snprintf(others, sizeof(others), R"("baseline_us":%.3f)", row.baseline_us);
  if (!row.baseline.empty()) file << R"(,"baseline":")" << escaped(row.baseline) << R"(",)" << others;
  std::snprintf(others, sizeof(others), R"("peer_us":%.3f)", row.peer_us);
  if (row.peer_us > 0) file << R"(,"peer":")" << escaped(row.peer) << R"(",)" << others;
  std::snprintf(others, sizeof(others), R"("spread":%.3f)", row.spread);
  file << "," << others << "}\n";
  if (!file.flush()) std::fprintf(stderr, "kernel_bench: cannot write %s\n", path_.c_str());
}

/// Ratios: of_limit = limit / ours; vs base and vs peer = theirs / ours, above 1 where ours is faster.
void Report::print_table() const {
  size_t kernel_width = 6, shape_width = 5;
  for (const Row& row : rows_) {
    kernel_width = std::max(kernel_width, row.kernel.size());
    shape_width = std::max(shape_width, row.shape.size());
  }
  const int kw = static_cast<int>(kernel_width), sw = static_cast<int>(shape_width);
  std::printf("%s, %s, commit %s (vs: theirs / ours)\n", gpu_.c_str(), date_.c_str(), commit_.c_str());
  std::printf("%-*s %-*s %8s %6s %6s %8s %5s %8s %5s %8s %5s %4s\n", kw, "kernel", sw, "shape", "us", "TFLOPS", "GB/s", "limit", "of",
              "baseline", "vs", "peer", "vs", "+-%");
  for (const Row& row : rows_) {
    std::printf("%-*s %-*s %8s %6.0f %6.0f %8s %5s %8s %5s %8s %5s %4.0f\n", kw, row.kernel.c_str(), sw, row.shape.c_str(),
                micros(row.us).c_str(), row.us > 0 ? row.flops / row.us * 1e-6 : 0, row.us > 0 ? row.bytes / row.us * 1e-3 : 0,
                micros(row.limit_us).c_str(), ratio(row.limit_us, row.us).c_str(), micros(row.baseline_us).c_str(),
                ratio(row.baseline_us, row.us).c_str(), micros(row.peer_us).c_str(), ratio(row.peer_us, row.us).c_str(), row.spread * 100);
  }
  std::fflush(stdout);
}

Buffer::Buffer(int64_t bytes, Fill fill, uint32_t seed) {
  const int64_t words = (std::max<int64_t>(bytes, 4) + 3) / 4;
  must(cudaMalloc(&data_, static_cast<size_t>(words) * 4), "device memory");
  if (fill == Fill::kZero) {
    must(cudaMemset(data_, 0, static_cast<size_t>(words) * 4), "cudaMemset");
  } else {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>((words + 255) / 256, 132 * 16));
    fill_kernel<<<blocks, 256>>>(static_cast<uint32_t*>(data_), words, fill, seed);
    must(cudaGetLastError(), "fill_kernel");
  }
  must(cudaDeviceSynchronize(), "fill");  // streams of time_chain do not wait for the default stream
}
void Buffer::copy(const void* from, size_t bytes) {
  must(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  must(cudaDeviceSynchronize(), "copy");  // as above
}
Buffer::~Buffer() { cudaFree(data_); }
Buffer::Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}

int copies_beyond_l2(int64_t bytes, int most) {
  constexpr int64_t kRotation = 320'000'000;
  return static_cast<int>(std::clamp<int64_t>((kRotation + bytes - 1) / std::max<int64_t>(bytes, 1), 1, most));
}

}  // namespace dsv3::cuda::bench
