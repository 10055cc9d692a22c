// An image -> its likeliest classes, by a compiled engine.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine.hpp"
#include "preprocess.hpp"
#include "refused.hpp"

namespace edgevit {

struct Options {
  int threads = 0;           // 0: the runtime's own choice
  bool any_version = false;  // accept another version of the runtime than accuracy was measured with
};

struct Prediction {
  int index;
  std::string label;
  float score;  // raw
  float share;  // of the softmax, 0 to 1
};

// One Classifier runs one image at a time; load it once and keep it.
class Classifier {
 public:
  // Verifies the bundle before anything of it is used: schema, sha256 of every file, runtime, version, machine, sizes.
  // Throws Refused.
  static Classifier load(const std::filesystem::path& bundle, const Options& options = {});

  // The `top` likeliest classes, best first; equal scores stand in class order. Throws Refused.
  std::vector<Prediction> run(const Image& image, int top = 5);

  // The same for a tensor that you wrote to `engine().input()` yourself.
  std::vector<Prediction> run_tensor(int top = 5);

  const Preprocess& preprocess() const { return preprocess_; }
  Engine& engine() { return *engine_; }

 private:
  Classifier(Preprocess preprocess, std::vector<std::string> labels, std::unique_ptr<Engine> engine);

  Preprocess preprocess_;
  std::vector<std::string> labels_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace edgevit
