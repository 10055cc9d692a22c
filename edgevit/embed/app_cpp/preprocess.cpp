#include "preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "refused.hpp"

namespace edgevit {

namespace {

constexpr int kBits = 22;  // fraction bits of a weight: 8 bits of pixel and 2 of overshoot fill the 32
constexpr int64_t kMostPixels = 178956970;  // what Pillow too calls a decompression bomb
constexpr double kPi = 3.14159265358979323846;

double sinc(double x) { return x == 0 ? 1 : std::sin(kPi * x) / (kPi * x); }

double cubic(double x) {
  const double a = -0.5, t = std::fabs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
}

struct Filter {
  double support;            // in output pixels
  double (*weight)(double);  // of a distance in output pixels
};

const std::map<std::string, Filter> kFilters = {
    {"box", {0.5, [](double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }}},
    {"bilinear", {1, [](double x) { return std::max(0.0, 1 - std::fabs(x)); }}},
    {"hamming", {1, [](double x) { return std::fabs(x) < 1 ? sinc(x) * (0.54 + 0.46 * std::cos(kPi * x)) : 0.0; }}},
    {"bicubic", {2, cubic}},
    {"lanczos", {3, [](double x) { return std::fabs(x) < 3 ? sinc(x) * sinc(x / 3) : 0.0; }}},
};

// Which input positions make an output position, and their integer weights.
struct Taps {
  int64_t first;
  std::vector<int32_t> weights;
};

// Taps of the output positions `start` ... `start + count` of an axis that goes from `from` to `to` pixels.
std::vector<Taps> taps(int64_t from, int64_t to, int64_t start, int count, const Filter& filter) {
  std::vector<Taps> found;
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double stretch = std::max(scale, 1.0);  // shrinking widens the filter: no input pixel is skipped
  for (int64_t i = start; i < start + count; ++i) {
    if (from == to) {
      found.push_back({i, {1 << kBits}});
      continue;
    }
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const auto first = std::max<int64_t>(0, static_cast<int64_t>(centre - filter.support * stretch + 0.5));
    const auto last = std::min<int64_t>(from, static_cast<int64_t>(centre + filter.support * stretch + 0.5));
    std::vector<double> raw;
    double sum = 0;
    for (int64_t k = first; k < last; ++k) {
      raw.push_back(filter.weight((static_cast<double>(k) - centre + 0.5) / stretch));
      sum += raw.back();
    }
    Taps one{first, {}};
    for (const double w : raw) one.weights.push_back(static_cast<int32_t>(w / sum * (1 << kBits) + (w < 0 ? -0.5 : 0.5)));
    found.push_back(std::move(one));
  }
  return found;
}

// Nearest: the one input position; steps are added up as Pillow adds them, for the same rounding.
std::vector<Taps> picks(int64_t from, int64_t to, int64_t start, int count) {
  std::vector<Taps> found;
  const double step = static_cast<double>(from) / static_cast<double>(to);
  double at = step / 2;
  for (int64_t i = 0; i < start + count; ++i, at += step) {
    if (i >= start) found.push_back({std::min(from - 1, static_cast<int64_t>(at)), {1 << kBits}});
  }
  return found;
}

uint8_t clipped(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kBits, 0, 255)); }

// One pass along an axis whose neighbours lie `step` bytes apart; `lines` lines that start `stride` bytes apart.
void pass(const uint8_t* source, uint8_t* target, const std::vector<Taps>& plan, int64_t lines, size_t step, size_t stride,
          size_t out_step, size_t out_stride) {
  for (int64_t line = 0; line < lines; ++line) {
    for (size_t i = 0; i < plan.size(); ++i) {
      const uint8_t* from = source + static_cast<size_t>(line) * stride + static_cast<size_t>(plan[i].first) * step;
      int32_t r = 1 << (kBits - 1), g = r, b = r;
      for (const int32_t weight : plan[i].weights) {
        r += from[0] * weight;
        g += from[1] * weight;
        b += from[2] * weight;
        from += step;
      }
      uint8_t* to = target + static_cast<size_t>(line) * out_stride + i * out_step;
      to[0] = clipped(r), to[1] = clipped(g), to[2] = clipped(b);
    }
  }
}

}  // namespace

Preprocess::Preprocess(const Json& manifest) {
  const auto size = manifest.at("size").integers();
  if (size.size() != 2 || size[0] < 1 || size[1] < 1 || size[0] > 4096 || size[1] > 4096) {
    throw Refused("preprocess size must be two numbers, 1 to 4096" + kAgain);
  }
  height_ = static_cast<int>(size[0]), width_ = static_cast<int>(size[1]);
  resize_ = manifest.at("resize").string();
  interpolation_ = manifest.at("interpolation").string();
  crop_pct_ = manifest.at("crop_pct").number();
  if (resize_ != "squash" && resize_ != "shortest" && resize_ != "squash_crop") {
    throw Refused("this loader does not know the resize " + resize_ + kAgain);
  }
  if (interpolation_ != "nearest" && !kFilters.count(interpolation_)) {
    throw Refused("this loader does not know the interpolation " + interpolation_ + kAgain);
  }
  if (!(crop_pct_ >= 0.01 && crop_pct_ <= 1)) throw Refused("preprocess crop_pct must be 0.01 to 1" + kAgain);
  if (manifest.at("channels").string() != "RGB") throw Refused("preprocess channels must be RGB" + kAgain);
  const auto &mean = manifest.at("mean").array(), &std = manifest.at("std").array();
  if (mean.size() != 3 || std.size() != 3) throw Refused("preprocess mean and std must be three numbers" + kAgain);
  for (size_t c = 0; c < 3; ++c) {
    mean_[c] = static_cast<float>(mean[c].number()), std_[c] = static_cast<float>(std[c].number());
    if (!(std_[c] > 0)) throw Refused("preprocess std must be positive" + kAgain);
  }
}

void Preprocess::run(const Image& image, float* tensor) const {
  const int64_t from_wide = image.width, from_tall = image.height;
  if (!image.rgb || from_wide < 1 || from_tall < 1 || from_wide * from_tall > kMostPixels) {
    throw Refused("an image of " + std::to_string(from_wide) + " x " + std::to_string(from_tall) + " pixels cannot be used");
  }
  int64_t wide = width_, tall = height_;
  if (resize_ != "squash") {
    tall = static_cast<int64_t>(std::floor(height_ / crop_pct_)), wide = static_cast<int64_t>(std::floor(width_ / crop_pct_));
    if (resize_ == "squash_crop") {
    } else if (tall * from_wide >= wide * from_tall) {  // the height decides, the width overhangs
      wide = tall * from_wide / from_tall;
    } else {
      tall = wide * from_tall / from_wide;
    }
  }
  // Halves go to the even side, as Python rounds. Only the crop is computed: each of its pixels is as in the whole.
  const auto left = static_cast<int64_t>(std::nearbyint(static_cast<double>(wide - width_) / 2));
  const auto top = static_cast<int64_t>(std::nearbyint(static_cast<double>(tall - height_) / 2));
  const bool nearest = interpolation_ == "nearest";
  const auto plan = [&](int64_t from, int64_t to, int64_t start, int count) {
    return nearest ? picks(from, to, start, count) : taps(from, to, start, count, kFilters.at(interpolation_));
  };
  const auto columns = plan(from_wide, wide, left, width_);
  auto rows = plan(from_tall, tall, top, height_);

  const size_t in_row = static_cast<size_t>(from_wide) * 3, out_row = static_cast<size_t>(width_) * 3;
  std::vector<uint8_t> fitted(out_row * static_cast<size_t>(height_)), between;
  if (tall < from_tall && from_tall - tall > 2 * (from_wide - wide)) {  // Pillow 13's order: what is rounded first
    between.resize(in_row * static_cast<size_t>(height_));
    pass(image.rgb, between.data(), rows, from_wide, in_row, 3, in_row, 3);
    pass(between.data(), fitted.data(), columns, height_, 3, in_row, 3, out_row);
  } else {
    const int64_t first = rows.front().first;  // rows above and below those that are read stay out
    int64_t last = first;
    for (Taps& row : rows) {
      last = std::max(last, row.first + static_cast<int64_t>(row.weights.size()));
      row.first -= first;
    }
    between.resize(out_row * static_cast<size_t>(last - first));
    pass(image.rgb + static_cast<size_t>(first) * in_row, between.data(), columns, last - first, 3, in_row, 3, out_row);
    pass(between.data(), fitted.data(), rows, width_, out_row, 3, out_row, 3);
  }
  const size_t plane = fitted.size() / 3;
  for (size_t c = 0; c < 3; ++c) {
    float values[256];
    for (int v = 0; v < 256; ++v) values[v] = (static_cast<float>(v) / 255.0f - mean_[c]) / std_[c];
    for (size_t i = 0; i < plane; ++i) tensor[c * plane + i] = values[fitted[3 * i + c]];
  }
}

}  // namespace edgevit
