// golden_test BUNDLE GOLDEN: preprocessing gives the tensors that accuracy was measured with. Needs no engine.

#include <cstdio>
#include <cstring>

#include "bundle.hpp"
#include "ppm.hpp"
#include "preprocess.hpp"

int main(int count, char** words) {
  if (count != 3) return 2;
  const std::filesystem::path golden = words[2];
  int wrong = 0;
  try {
    const edgevit::Preprocess preprocess(edgevit::read_manifest(words[1]).at("preprocess"));
    const auto index = edgevit::Json::parse(edgevit::read_file(golden / "golden.json"));
    std::vector<float> tensor(size_t{3} * static_cast<size_t>(preprocess.height()) * static_cast<size_t>(preprocess.width()));
    for (const auto& vector : index.at("vectors").array()) {
      const std::string want = edgevit::read_file(golden / vector.at("tensor").string());
      const edgevit::Ppm file = edgevit::read_ppm(golden / vector.at("image").string());
      preprocess.run(file.image(), tensor.data());
      const bool same = want.size() == tensor.size() * sizeof(float) && !std::memcmp(want.data(), tensor.data(), want.size());
      std::printf("%s: %s\n", vector.at("image").string().c_str(), same ? "exact" : "differs");
      wrong += !same;
    }
  } catch (const edgevit::Refused& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return wrong != 0;
}
