#include "loop.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace edgevit {

namespace {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double once(Engine& engine) {
  const auto start = std::chrono::steady_clock::now();
  engine.run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

WarmUp warm_up(Engine& engine, double least, double most) {
  const double start = now();
  WarmUp found;
  double before = 0;
  while (least > 0 && !found.stable && now() - start < most) {
    std::vector<double> window;
    const double began = now();
    while (window.size() < 5 || now() - began < least / 4) {
      window.push_back(once(engine));
      if (now() - start >= most) break;
    }
    found.samples += static_cast<long>(window.size());
    const double middle = median(window);
    found.stable = before > 0 && std::fabs(middle / before - 1) <= 0.02 && now() - start >= least;
    before = middle;
  }
  found.seconds = now() - start;
  return found;
}

std::vector<double> sample(Engine& engine, long samples, double least, double most) {
  std::vector<double> found;
  const double began = now();
  while (found.empty() || now() - began < most) {
    found.push_back(once(engine));
    if (static_cast<long>(found.size()) >= samples && now() - began >= least) break;
  }
  return found;
}

}  // namespace edgevit
