// An opened engine. engine_*.cpp holds one for each runtime; CMakeLists.txt takes the bundle's.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "json.hpp"

namespace edgevit {

class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::vector<long> input_shape() const = 0;
  virtual std::vector<long> output_shape() const = 0;
  virtual float* input() = 0;         // its own memory, [1, 3, H, W]: what is written here is not copied again
  virtual const float* run() = 0;     // scores [1, classes], until the next run
};

// The target whose bundles this build opens, the runtime's name, whether it builds the engine on this machine, and its
// version.
extern const char* const kTarget;
extern const char* const kRuntime;
extern const bool kBuildsHere;
std::string runtime_version();

// threads: 0 leaves them to the runtime. Refused where the runtime does not take the engine.
std::unique_ptr<Engine> open_engine(const std::filesystem::path& bundle, const Json& manifest, int threads);

// The same of one file; options: the runtime's own. Only where the file is all (ONNX Runtime, ExecuTorch).
std::unique_ptr<Engine> open_file(const std::filesystem::path& path, const Json& options, int threads);

}  // namespace edgevit
