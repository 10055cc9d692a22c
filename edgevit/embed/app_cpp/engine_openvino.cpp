// OpenVINO, on the CPU.

#include <algorithm>
#include <openvino/openvino.hpp>

#include "engine.hpp"
#include "refused.hpp"

namespace edgevit {

const char* const kTarget = "openvino";
const char* const kRuntime = "OpenVINO";
const bool kBuildsHere = false;

std::string runtime_version() { return ov::get_openvino_version().buildNumber; }

namespace {

std::vector<long> longs(const ov::Shape& shape) { return {shape.begin(), shape.end()}; }

// The engine's precision must be the CPU's own: elsewhere it would be computed in another.
void check_precision(ov::Core& core, const std::string& hint) {
  const std::string wanted = hint == "bf16" ? "BF16" : hint == "f16" ? "FP16" : "FP32";
  const auto able = core.get_property("CPU", ov::device::capabilities);
  if (std::find(able.begin(), able.end(), wanted) == able.end()) {
    throw Refused("the engine computes in " + wanted + ", which this CPU does not; export it for this CPU");
  }
}

class OpenVino : public Engine {
 public:
  OpenVino(const std::filesystem::path& path, const Json& config, int threads) {
    ov::Core core;
    check_precision(core, config.at("INFERENCE_PRECISION_HINT").string());
    ov::AnyMap options;
    for (const auto& [key, value] : config.object()) options[key] = value.string();
    if (threads > 0) options["INFERENCE_NUM_THREADS"] = threads;
    compiled_ = core.compile_model(path.string(), "CPU", options);
    request_ = compiled_.create_infer_request();
    if (compiled_.input().get_element_type() != ov::element::f32 || compiled_.output().get_element_type() != ov::element::f32) {
      throw Refused("the engine's input and output are not float32" + kAgain);
    }
  }

  std::vector<long> input_shape() const override { return longs(compiled_.input().get_shape()); }
  std::vector<long> output_shape() const override { return longs(compiled_.output().get_shape()); }
  float* input() override { return request_.get_input_tensor().data<float>(); }

  const float* run() override {
    request_.infer();
    return request_.get_output_tensor().data<float>();
  }

 private:
  ov::CompiledModel compiled_;
  ov::InferRequest request_;
};

}  // namespace

std::unique_ptr<Engine> open_engine(const std::filesystem::path& bundle, const Json& manifest, int threads) {
  const std::string entry = manifest.at("entry").string();
  try {
    return std::make_unique<OpenVino>(bundle / entry, manifest.at("runtime").at("options").at("config"), threads);
  } catch (const Refused&) {
    throw;
  } catch (const std::exception& error) {
    throw Refused("OpenVINO cannot load " + entry + ": " + error.what());
  }
}

}  // namespace edgevit
