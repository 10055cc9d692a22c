// Binary PPM (P6, 8 bits) for the examples: no library needed. Give `Image` pixels of your own decoder.
#pragma once

#include <cctype>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "bundle.hpp"
#include "preprocess.hpp"
#include "refused.hpp"

namespace edgevit {

struct Ppm {
  std::vector<uint8_t> pixels;
  int width = 0, height = 0;
  Image image() const { return {pixels.data(), width, height}; }
};

inline Ppm read_ppm(const std::filesystem::path& path) {
  const std::string data = read_file(path);
  const auto bad = [&] { return Refused(path.string() + " is no binary PPM (P6) of 8 bits"); };
  if (data.compare(0, 2, "P6") != 0) throw bad();
  size_t at = 2;
  long values[3] = {};
  for (long& value : values) {
    while (at < data.size() && (std::isspace(static_cast<unsigned char>(data[at])) || data[at] == '#')) {
      if (data[at] == '#') at = data.find('\n', at);
      if (at < data.size()) ++at;
    }
    const size_t digits = at;
    while (at < data.size() && data[at] >= '0' && data[at] <= '9' && at - digits < 6) value = 10 * value + data[at++] - '0';
    if (digits == at) throw bad();
  }
  ++at;  // one space before the pixels
  const size_t size = static_cast<size_t>(values[0]) * static_cast<size_t>(values[1]) * 3;
  if (values[2] != 255 || size == 0 || at > data.size() || data.size() - at < size) throw bad();
  const auto begin = data.begin() + static_cast<std::ptrdiff_t>(at);
  return {{begin, begin + static_cast<std::ptrdiff_t>(size)}, static_cast<int>(values[0]), static_cast<int>(values[1])};
}

}  // namespace edgevit
