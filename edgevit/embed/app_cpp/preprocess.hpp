// Image -> input tensor, bit for bit what edgevit's preprocess.py does with Pillow 13 or later.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "json.hpp"

namespace edgevit {

// Pixels from top left, row after row: red, green, blue, 8 bits each. A camera's rotation mark is not heeded.
struct Image {
  const uint8_t* rgb = nullptr;
  int width = 0;
  int height = 0;
};

class Preprocess {
 public:
  explicit Preprocess(const Json& manifest);  // its "preprocess"; Refused where a value is not possible

  int height() const { return height_; }
  int width() const { return width_; }

  // Writes float32 [3, height, width] to `tensor`: resized, cropped, (value / 255 - mean) / std.
  void run(const Image& image, float* tensor) const;

 private:
  int height_, width_;
  std::string resize_, interpolation_;
  double crop_pct_;
  std::array<float, 3> mean_{}, std_{};
};

}  // namespace edgevit
