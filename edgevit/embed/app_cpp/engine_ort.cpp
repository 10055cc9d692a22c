// ONNX Runtime, on the CPU.

#include <onnxruntime_cxx_api.h>

#include "engine.hpp"
#include "refused.hpp"

namespace edgevit {

const char* const kTarget = "ort";
const char* const kRuntime = "ONNX Runtime";
const bool kBuildsHere = false;

std::string runtime_version() { return OrtGetApiBase()->GetVersionString(); }

namespace {

Ort::SessionOptions options_of(const Json& given, int threads) {
  Ort::SessionOptions options;
  if (threads > 0) options.SetIntraOpNumThreads(threads);
  if (given.has("session_config")) {
    for (const auto& [key, value] : given.at("session_config").object()) {
      options.AddConfigEntry(key.c_str(), value.string().c_str());
    }
  }
  return options;
}

class OnnxRuntime : public Engine {
 public:
  OnnxRuntime(const std::filesystem::path& path, const Json& given, int threads)
      : session_(env_, path.c_str(), options_of(given, threads)) {
    Ort::AllocatorWithDefaultOptions allocator;
    in_name_ = session_.GetInputNameAllocated(0, allocator).get();
    out_name_ = session_.GetOutputNameAllocated(0, allocator).get();
    in_ = tensor(session_.GetInputTypeInfo(0), allocator);
    out_ = tensor(session_.GetOutputTypeInfo(0), allocator);
  }

  std::vector<long> input_shape() const override { return shape(in_); }
  std::vector<long> output_shape() const override { return shape(out_); }
  float* input() override { return in_.GetTensorMutableData<float>(); }

  const float* run() override {
    const char *in = in_name_.c_str(), *out = out_name_.c_str();
    session_.Run(Ort::RunOptions{nullptr}, &in, &in_, 1, &out, &out_, 1);
    return out_.GetTensorData<float>();
  }

 private:
  static Ort::Value tensor(const Ort::TypeInfo& type, OrtAllocator* allocator) {
    const auto info = type.GetTensorTypeAndShapeInfo();
    const auto shape = info.GetShape();
    for (const int64_t side : shape) {
      if (side < 1) throw Refused("the engine's shapes are not static" + kAgain);
    }
    if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) throw Refused("the engine is not float32" + kAgain);
    return Ort::Value::CreateTensor<float>(allocator, shape.data(), shape.size());
  }

  static std::vector<long> shape(const Ort::Value& value) {
    const auto found = value.GetTensorTypeAndShapeInfo().GetShape();
    return {found.begin(), found.end()};
  }

  Ort::Env env_{ORT_LOGGING_LEVEL_ERROR, "edgevit"};
  Ort::Session session_;
  std::string in_name_, out_name_;
  Ort::Value in_{nullptr}, out_{nullptr};
};

}  // namespace

std::unique_ptr<Engine> open_file(const std::filesystem::path& path, const Json& given, int threads) {
  try {
    return std::make_unique<OnnxRuntime>(path, given, threads);
  } catch (const Refused&) {
    throw;
  } catch (const std::exception& error) {
    throw Refused("ONNX Runtime cannot load " + path.filename().string() + ": " + error.what());
  }
}

std::unique_ptr<Engine> open_engine(const std::filesystem::path& bundle, const Json& manifest, int threads) {
  return open_file(bundle / manifest.at("entry").string(), manifest.at("runtime").at("options"), threads);
}

}  // namespace edgevit
