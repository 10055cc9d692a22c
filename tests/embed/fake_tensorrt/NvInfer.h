// FAKE: what engine_trt.cpp calls of TensorRT 10, for a machine without a GPU. Its engine takes [1, 3, 96, 96] and says
// class 3 of 10, whatever it was built from.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

#ifndef NV_TENSORRT_MAJOR
#define NV_TENSORRT_MAJOR 10
#endif

inline int getInferLibVersion() noexcept { return NV_TENSORRT_MAJOR * 10000 + 300; }

namespace nvinfer1 {

const std::string kPlan = "fake plan of an engine that computes nothing";

enum class DataType : int32_t { kFLOAT = 0 };
enum class TensorIOMode : int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
#if NV_TENSORRT_MAJOR < 11
enum class NetworkDefinitionCreationFlag : int32_t { kSTRONGLY_TYPED = 1 };
#endif

struct Dims {
  int32_t nbDims;
  int64_t d[8];
};

class ILogger {
 public:
  enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2 };
  virtual void log(Severity severity, const char* message) noexcept = 0;

 protected:
  virtual ~ILogger() = default;
};

class IHostMemory {
 public:
  void* data() const noexcept { return const_cast<char*>(kPlan.data()); }
  size_t size() const noexcept { return kPlan.size(); }
};

class IExecutionContext {
 public:
  bool setTensorAddress(const char* name, void* memory) noexcept {
    if (name == std::string("scores")) scores_ = static_cast<float*>(memory);
    return true;
  }
  bool enqueueV3(cudaStream_t) noexcept { return scores_[3] = 1, true; }

 private:
  float* scores_ = nullptr;
};

class ICudaEngine {
 public:
  int32_t getNbIOTensors() const noexcept { return 2; }
  const char* getIOTensorName(int32_t index) const noexcept { return index ? "scores" : "images"; }
  TensorIOMode getTensorIOMode(const char* name) const noexcept {
    return name == std::string("images") ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  DataType getTensorDataType(const char*) const noexcept { return DataType::kFLOAT; }
  Dims getTensorShape(const char* name) const noexcept {
    return name == std::string("images") ? Dims{4, {1, 3, 96, 96}} : Dims{2, {1, 10}};
  }
  IExecutionContext* createExecutionContext() noexcept { return new IExecutionContext; }
};

class IRuntime {
 public:
  explicit IRuntime(ILogger& log) : log_(log) {}
  ICudaEngine* deserializeCudaEngine(const void* plan, size_t size) noexcept {
    if (size == kPlan.size() && !std::memcmp(plan, kPlan.data(), size)) return new ICudaEngine;
    log_.log(ILogger::Severity::kERROR, "no plan");
    return nullptr;
  }

 private:
  ILogger& log_;
};

class INetworkDefinition {};
class IBuilderConfig {};

class IBuilder {
 public:
  INetworkDefinition* createNetworkV2(uint32_t flags) noexcept {
    return flags == (NV_TENSORRT_MAJOR < 11 ? 2 : 0) ? new INetworkDefinition : nullptr;
  }
  IBuilderConfig* createBuilderConfig() noexcept { return new IBuilderConfig; }
  IHostMemory* buildSerializedNetwork(INetworkDefinition&, IBuilderConfig&) noexcept { return new IHostMemory; }
};

inline IBuilder* createInferBuilder(ILogger&) noexcept { return new IBuilder; }
inline IRuntime* createInferRuntime(ILogger& log) noexcept { return new IRuntime(log); }

}  // namespace nvinfer1
