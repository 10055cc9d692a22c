#include "classifier.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "bundle.hpp"

namespace edgevit {

namespace {

const char* machine() {
#if defined(__x86_64__) || defined(_M_X64)
  return "x86_64";
#elif defined(__aarch64__) || defined(_M_ARM64)
  return "aarch64";
#else
  return "another machine";
#endif
}

// Names of the same machine: Linux, Windows and macOS differ.
std::string common(const std::string& name) { return name == "AMD64" ? "x86_64" : name == "arm64" || name == "ARM64" ? "aarch64" : name; }

std::string release(const std::string& version) { return version.substr(0, version.find('-')); }

void check_runtime(const Json& manifest, bool any_version) {
  const std::string target = manifest.at("target").string();
  if (target != kTarget) throw Refused("the bundle is for " + target + ", this app runs " + kTarget + "; embed that bundle again");
  if (kBuildsHere) return;  // for this machine, by the version that is here
  const std::string built = release(manifest.at("runtime").at("version").string()), here = release(runtime_version());
  if (built != here && !any_version) {
    throw Refused("the engine was built and checked with " + std::string(kRuntime) + " " + built + ", here is " + here +
                  ": install that, or accept it (any_version) after you evaluated it");
  }
  const std::string precision = manifest.at("precision").string();
  const std::string built_on = manifest.has("built_on") ? manifest.at("built_on").at("machine").string() : "an unknown machine";
  if (precision.rfind("int8", 0) == 0 && common(built_on) != machine()) {
    throw Refused("the " + precision + " engine was built for " + built_on + ", this is " + machine() +
                  ", whose 8-bit sums may differ; export it there");
  }
}

std::string text(const std::vector<long>& shape) {
  std::string found;
  for (const long side : shape) found += (found.empty() ? "[" : ", ") + std::to_string(side);
  return found + "]";
}

void check_shape(const char* what, const std::vector<long>& got, const std::vector<long>& wanted) {
  if (got != wanted) throw Refused(std::string(what) + " is " + text(got) + ", expected " + text(wanted) + kAgain);
}

}  // namespace

Classifier::Classifier(Preprocess preprocess, std::vector<std::string> labels, std::unique_ptr<Engine> engine)
    : preprocess_(std::move(preprocess)), labels_(std::move(labels)), engine_(std::move(engine)) {}

Classifier Classifier::load(const std::filesystem::path& bundle, const Options& options) {
  const Json manifest = read_manifest(bundle);
  check_runtime(manifest, options.any_version);
  Preprocess preprocess(manifest.at("preprocess"));
  const std::vector<long> input{1, 3, preprocess.height(), preprocess.width()};
  check_shape("the manifest's input", manifest.at("input").at("shape").integers(), input);
  const auto output = manifest.at("output").at("shape").integers();
  if (output.size() != 2 || output[0] != 1 || output[1] < 1 || output[1] > 1000000) {
    throw Refused("the manifest's output is " + text(output) + ", expected [1, classes]" + kAgain);
  }
  auto labels = read_labels(bundle, manifest);
  check_shape("the manifest's output", output, {1, static_cast<long>(labels.size())});
  auto engine = open_engine(bundle, manifest, options.threads);
  check_shape("the engine's input", engine->input_shape(), input);
  check_shape("the engine's output", engine->output_shape(), output);
  return {std::move(preprocess), std::move(labels), std::move(engine)};
}

std::vector<Prediction> Classifier::run(const Image& image, int top) {
  preprocess_.run(image, engine_->input());
  return run_tensor(top);
}

std::vector<Prediction> Classifier::run_tensor(int top) {
  if (top < 1) throw Refused("top must be 1 or more");
  const float* scores = engine_->run();
  const size_t classes = labels_.size();
  if (!std::all_of(scores, scores + classes, [](float s) { return std::isfinite(s); })) {
    throw Refused("the engine gave NaN or infinite scores");
  }
  const size_t shown = std::min(classes, static_cast<size_t>(top));
  std::vector<size_t> order(classes);
  std::iota(order.begin(), order.end(), size_t{0});
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(shown), order.end(), [&](size_t a, size_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  });
  const float most = scores[order[0]];
  double sum = 0;
  for (size_t i = 0; i < classes; ++i) sum += std::exp(static_cast<double>(scores[i] - most));
  std::vector<Prediction> found;
  for (size_t i = 0; i < shown; ++i) {
    const size_t k = order[i];
    const auto share = static_cast<float>(std::exp(static_cast<double>(scores[k] - most)) / sum);
    found.push_back({static_cast<int>(k), labels_[k], scores[k], share});
  }
  return found;
}

}  // namespace edgevit
