// bench BUNDLE IMAGE.ppm THREADS WARMUP_S MIN_SECONDS MIN_SAMPLES: one round, as apps_python.py's, in JSON.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "classifier.hpp"
#include "ppm.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

template <class Run>
double once_ms(Run run) {
  const auto start = Clock::now();
  run();
  return 1e3 * seconds(start);
}

void print(const char* name, const std::vector<double>& samples) {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < samples.size(); ++i) std::printf("%s%.6f", i ? ", " : "", samples[i]);
  std::printf("], ");
}

}  // namespace

int main(int count, char** words) {
  if (count != 7) return 2;
  edgevit::Options options;
  options.threads = std::atoi(words[3]);
  const double warmup = std::atof(words[4]), least = std::atof(words[5]);
  const auto samples = static_cast<size_t>(std::atol(words[6]));
  try {
    auto classifier = edgevit::Classifier::load(words[1], options);
    const edgevit::Ppm file = edgevit::read_ppm(words[2]);
    const auto bare = [&] { classifier.engine().run(); };
    const auto app = [&] { classifier.run_tensor(5); };
    const auto whole = [&] { classifier.run(file.image(), 5); };
    whole();  // and its tensor stands in the engine's input
    for (const auto start = Clock::now(); seconds(start) < warmup;) bare();
    std::vector<double> bare_ms, app_ms, image_ms;
    for (const auto start = Clock::now(); app_ms.size() < samples || seconds(start) < 2 * least;) {
      bare_ms.push_back(once_ms(bare));
      app_ms.push_back(once_ms(app));
      app_ms.push_back(once_ms(app));
      bare_ms.push_back(once_ms(bare));
    }
    for (const auto start = Clock::now(); image_ms.size() < samples || seconds(start) < least;) image_ms.push_back(once_ms(whole));
    std::printf("{");
    print("bare", bare_ms);
    print("app", app_ms);
    print("image", image_ms);
    std::printf("\"threads\": %d}\n", options.threads);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
