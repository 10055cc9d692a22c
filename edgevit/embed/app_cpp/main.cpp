// classify BUNDLE IMAGE.ppm...: the likeliest classes of each image. Exit 1 with one line when refused.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "classifier.hpp"
#include "ppm.hpp"

int main(int count, char** words) {
  edgevit::Options options;
  int first = 1, top = 5;
  for (; first < count && std::strncmp(words[first], "--", 2) == 0; ++first) {
    if (std::strcmp(words[first], "--any-version") == 0) {
      options.any_version = true;
    } else if (std::strcmp(words[first], "--top") == 0 && first + 1 < count) {
      top = std::atoi(words[++first]);
    } else if (std::strcmp(words[first], "--threads") == 0 && first + 1 < count) {
      options.threads = std::atoi(words[++first]);
    } else {
      first = count;
    }
  }
  if (count - first < 2) {
    std::fprintf(stderr, "usage: classify [--top K] [--threads N] [--any-version] BUNDLE IMAGE.ppm...\n");
    return 2;
  }
  try {
    auto classifier = edgevit::Classifier::load(words[first], options);
    for (int i = first + 1; i < count; ++i) {
      const edgevit::Ppm file = edgevit::read_ppm(words[i]);
      std::printf("%s\n", words[i]);
      for (const auto& found : classifier.run(file.image(), top)) {
        std::printf("  %6.2f %%  %d  %s\n", 100 * static_cast<double>(found.share), found.index, found.label.c_str());
      }
    }
  } catch (const std::exception& error) {
    std::string line = error.what();
    for (char& c : line) c = c == '\n' ? ' ' : c;
    std::fprintf(stderr, "classify: %s\n", line.c_str());
    return 1;
  }
  return 0;
}
