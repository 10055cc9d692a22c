// ExecuTorch with XNNPACK, on the CPU.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include "engine.hpp"
#include "refused.hpp"

#if __has_include(<executorch/extension/threadpool/threadpool.h>)
#include <executorch/extension/threadpool/threadpool.h>
#else  // the Python package has the library, and not this header
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool
#endif

namespace edgevit {

const char* const kTarget = "executorch";
const char* const kRuntime = "ExecuTorch";
const bool kBuildsHere = false;

std::string runtime_version() { return EXECUTORCH_VERSION; }

namespace {

namespace et = executorch;

void fine(et::runtime::Error error, const std::string& what) {
  if (error != et::runtime::Error::Ok) throw Refused("ExecuTorch cannot " + what + ": " + et::runtime::to_string(error));
}

std::vector<long> shape_of(const et::runtime::Result<et::runtime::TensorInfo>& found, const char* what) {
  fine(found.error(), std::string("tell its ") + what);
  if (found->scalar_type() != et::aten::ScalarType::Float) throw Refused(std::string("the program's ") + what + " is not float32" + kAgain);
  return {found->sizes().begin(), found->sizes().end()};
}

class ExecuTorch : public Engine {
 public:
  ExecuTorch(const std::filesystem::path& path, int threads) : module_(path.string(), et::extension::Module::LoadMode::Mmap) {
    if (threads > 0 && !et::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(static_cast<uint32_t>(threads))) {
      throw Refused("ExecuTorch cannot take " + std::to_string(threads) + " threads");
    }
    fine(module_.load_forward(), "load " + path.filename().string());
    const auto meta = module_.method_meta("forward");
    fine(meta.error(), "tell what the program is");
    if (meta->num_inputs() != 1 || meta->num_outputs() != 1) throw Refused("the program has several inputs or outputs" + kAgain);
    in_ = shape_of(meta->input_tensor_meta(0), "input");
    out_ = shape_of(meta->output_tensor_meta(0), "output");
    size_t size = 1;
    for (const long side : in_) size *= static_cast<size_t>(side);
    values_.resize(size);
    tensor_ = et::extension::from_blob(values_.data(), {in_.begin(), in_.end()});
  }

  std::vector<long> input_shape() const override { return in_; }
  std::vector<long> output_shape() const override { return out_; }
  float* input() override { return values_.data(); }

  const float* run() override {
    const auto found = module_.forward(tensor_);  // copies the input to where the program planned it
    fine(found.error(), "run the program");
    return found->at(0).toTensor().const_data_ptr<float>();  // memory of the program
  }

 private:
  et::extension::Module module_;
  std::vector<long> in_, out_;
  std::vector<float> values_;
  et::extension::TensorPtr tensor_;
};

}  // namespace

std::unique_ptr<Engine> open_file(const std::filesystem::path& path, const Json&, int threads) {
  return std::make_unique<ExecuTorch>(path, threads);
}

}  // namespace edgevit
