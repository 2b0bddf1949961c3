// dsv3-serve. Exit codes: 0 done, 2 a flag or file is wrong, 3 the memory plan does not fit, 4 the device is lost,
// 1 anything else. Every failure is one line on stderr.
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "bench_layer.h"
#include "flag_table.h"
#include "options.h"
#include "plan_command.h"
#include "serve.h"

namespace {

int exit_code(dsv3::Code code) {
  using dsv3::Code;
  switch (code) {
    case Code::kOk: return 0;
    case Code::kInvalidArgument:
    case Code::kContextLength:
    case Code::kUnsupported:
    case Code::kNotFound:
    case Code::kTooLarge:
    case Code::kBadModelFile: return 2;
    case Code::kOutOfMemory: return 3;
    case Code::kDeviceLost: return 4;
    case Code::kUnauthorized:
    case Code::kOverloaded:
    case Code::kUnavailable:
    case Code::kCancelled:
    case Code::kInternal: return 1;
  }
  return 1;
}

dsv3::Status run(const std::vector<std::string>& args) {
  DSV3_ASSIGN(dsv3::ServerOptions options, dsv3::parse_options(args));
  switch (options.command) {
    case dsv3::Command::kHelp: std::fputs(dsv3::help_text().c_str(), stdout); return {};
    case dsv3::Command::kVersion: std::puts(dsv3::version_text().c_str()); return {};
    case dsv3::Command::kPlan: return dsv3::run_plan(options);
    case dsv3::Command::kBenchLayer: return dsv3::run_bench_layer(options);
    case dsv3::Command::kServe: return dsv3::serve(std::move(options));
  }
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  dsv3::Status status;
  try {
    status = run(std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
  } catch (const std::bad_alloc&) {
    status = {dsv3::Code::kOutOfMemory, "out of memory"};
  } catch (const std::exception& error) {
    status = {dsv3::Code::kInternal, error.what()};
  }
  if (!status.ok()) std::fprintf(stderr, "dsv3-serve: %s\n", dsv3::printable(status.message(), 2000).c_str());
  return exit_code(status.code());
}
