// The loop: first inference, warm-up, samples. The same rules as every runner of edgevit.
#pragma once

#include <vector>

#include "engine.hpp"

namespace edgevit {

double now();  // seconds, of a clock that only goes forward

struct WarmUp {
  double seconds = 0;
  long samples = 0;
  bool stable = false;
};

// Seconds of one inference.
double once(Engine& engine);

// Until `least` seconds have passed and two successive window medians agree within 2 %, at most `most`; least = 0: none.
WarmUp warm_up(Engine& engine, double least, double most);

// Seconds of each inference, until samples and seconds suffice or `most` seconds are up.
std::vector<double> sample(Engine& engine, long samples, double least, double most);

}  // namespace edgevit
