// TensorRT 10 and 11, on the GPU. An engine belongs to one GPU and one TensorRT, so it is built here, from the bundle's
// ONNX file, on the first start (minutes), and kept in `engines` beside the bundle.

#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <fstream>

#include "bundle.hpp"
#include "engine.hpp"
#include "refused.hpp"
#include "sha256.hpp"

namespace edgevit {

const char* const kTarget = "trt";
const char* const kRuntime = "TensorRT";
const bool kBuildsHere = true;

std::string runtime_version() {
  const int version = getInferLibVersion();  // 10.3.0 is 100300
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

namespace {

const char* const kOnnx = "model.onnx";

class Log : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) last = message;
  }
  std::string last = "it says no reason";
};

// What TensorRT and CUDA give is checked: the one returns null, the other a status.
template <class T>
std::unique_ptr<T> owned(T* made, const std::string& what, const Log& log) {
  if (!made) throw Refused("TensorRT " + runtime_version() + " " + what + ": " + log.last);
  return std::unique_ptr<T>(made);
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw Refused(std::string(what) + " failed: " + cudaGetErrorString(status));
}

// Memory that CPU and GPU both address: on a Jetson it is the same memory, and nothing is copied.
class Shared {
 public:
  explicit Shared(size_t bytes) {
    check(cudaHostAlloc(&host_, bytes, cudaHostAllocMapped), "allocating memory for the GPU");
    check(cudaHostGetDevicePointer(&device_, host_, 0), "mapping memory for the GPU");
    std::memset(host_, 0, bytes);
  }
  ~Shared() { cudaFreeHost(host_); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  float* host() const { return static_cast<float*>(host_); }
  void* device() const { return device_; }

 private:
  void *host_ = nullptr, *device_ = nullptr;
};

std::string gpu_name() {
  int device = 0;
  cudaDeviceProp properties{};
  check(cudaGetDevice(&device), "finding a GPU");
  check(cudaGetDeviceProperties(&properties, device), "asking the GPU what it is");
  return properties.name;
}

std::string build(const std::filesystem::path& onnx, Log& log) {
  const auto builder = owned(nvinfer1::createInferBuilder(log), "has no builder", log);
#if NV_TENSORRT_MAJOR >= 11
  const uint32_t typed = 0;  // it knows no other networks
#else
  const auto typed = 1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#endif
  const auto network = owned(builder->createNetworkV2(typed), "makes no strongly typed network", log);
  const auto parser = owned(nvonnxparser::createParser(*network, log), "has no parser", log);
  if (!parser->parseFromFile(onnx.c_str(), static_cast<int>(nvinfer1::ILogger::Severity::kERROR))) {
    throw Refused("TensorRT " + runtime_version() + " does not parse " + onnx.filename().string() + ": " + log.last);
  }
  const auto config = owned(builder->createBuilderConfig(), "has no builder config", log);
  const auto plan = owned(builder->buildSerializedNetwork(*network, *config), "does not build " + onnx.filename().string(), log);
  return {static_cast<const char*>(plan->data()), plan->size()};
}

// A plan is code: it is kept where only this app's user writes, and its name says what it was built from and for.
std::string plan_of(const std::filesystem::path& bundle, const Json& manifest, Log& log) {
  Sha256 key;
  const auto add = [&key](const std::string& part) { key.add(part.c_str(), part.size() + 1); };
  for (const auto& [name, hash] : manifest.at("files").object()) add(hash.string());
  add(gpu_name());
  add(runtime_version());
  const auto folder = std::filesystem::absolute(bundle).parent_path() / "engines";
  const auto kept = folder / (key.hex().substr(0, 24) + ".plan");
  if (std::filesystem::exists(kept)) return read_file(kept);
  const std::string plan = build(bundle / kOnnx, log);
  std::filesystem::create_directories(folder);
  const auto part = kept.string() + ".part";
  std::ofstream(part, std::ios::binary).write(plan.data(), static_cast<std::streamsize>(plan.size()));
  if (std::filesystem::file_size(part) != plan.size()) throw Refused("cannot write " + part + ": is the disk full?");
  std::filesystem::rename(part, kept);
  return plan;
}

class TensorRt : public Engine {
 public:
  TensorRt(const std::filesystem::path& bundle, const Json& manifest) {
    const std::string plan = plan_of(bundle, manifest, log_);
    runtime_ = owned(nvinfer1::createInferRuntime(log_), "has no runtime", log_);
    engine_ = owned(runtime_->deserializeCudaEngine(plan.data(), plan.size()), "cannot load its own engine", log_);
    context_ = owned(engine_->createExecutionContext(), "cannot run the engine", log_);
    in_name_ = tensor(nvinfer1::TensorIOMode::kINPUT);
    out_name_ = tensor(nvinfer1::TensorIOMode::kOUTPUT);
    in_ = bound(in_name_);
    out_ = bound(out_name_);
    check(cudaStreamCreate(&stream_), "making a stream");
  }
  ~TensorRt() override {
    if (stream_) cudaStreamDestroy(stream_);
  }

  std::vector<long> input_shape() const override { return shape(in_name_); }
  std::vector<long> output_shape() const override { return shape(out_name_); }
  float* input() override { return in_->host(); }

  const float* run() override {
    if (!context_->enqueueV3(stream_)) throw Refused("TensorRT did not run the engine: " + log_.last);
    check(cudaStreamSynchronize(stream_), "running the engine");
    return out_->host();
  }

 private:
  std::string tensor(nvinfer1::TensorIOMode mode) const {
    std::string found;
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      if (engine_->getTensorIOMode(name) != mode) continue;
      if (!found.empty()) throw Refused("the engine has several inputs or outputs" + kAgain);
      found = name;
    }
    if (found.empty()) throw Refused("the engine has no input or no output" + kAgain);
    if (engine_->getTensorDataType(found.c_str()) != nvinfer1::DataType::kFLOAT) throw Refused(found + " is not float32" + kAgain);
    return found;
  }

  std::vector<long> shape(const std::string& name) const {
    const nvinfer1::Dims dims = engine_->getTensorShape(name.c_str());
    return {dims.d, dims.d + dims.nbDims};
  }

  std::unique_ptr<Shared> bound(const std::string& name) {
    size_t bytes = sizeof(float);
    for (const long side : shape(name)) {
      if (side < 1) throw Refused("the engine's shapes are not static" + kAgain);
      bytes *= static_cast<size_t>(side);
    }
    auto memory = std::make_unique<Shared>(bytes);
    if (!context_->setTensorAddress(name.c_str(), memory->device())) throw Refused("TensorRT does not take memory for " + name);
    return memory;
  }

  Log log_;  // outlives what reports to it
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::string in_name_, out_name_;
  std::unique_ptr<Shared> in_, out_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

std::unique_ptr<Engine> open_engine(const std::filesystem::path& bundle, const Json& manifest, int) {
  try {
    return std::make_unique<TensorRt>(bundle, manifest);
  } catch (const std::filesystem::filesystem_error& error) {
    throw Refused(std::string("the engine cannot be kept: ") + error.what());
  }
}

}  // namespace edgevit
