// JSON that is written: one object, its keys in the order they were put. ASCII alone, whatever an error says.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace edgevit {

inline std::string text(const std::string& value) {
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') out += '\\';
    out += c < ' ' || c > '~' ? '?' : c;
  }
  return out + '"';
}

// Twelve digits; what is not finite has no word in JSON and is null.
inline std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char out[32];
  std::snprintf(out, sizeof out, "%.12g", value);
  return out;
}

template <class Values, class Write>
std::string list(const Values& values, Write write) {
  std::string out = "[";
  for (const auto& value : values) {
    if (out.size() > 1) out += ", ";
    out += write(value);
  }
  return out + ']';
}

class Record {
 public:
  Record& put(const std::string& key, const std::string& json) {
    body_ += (body_.empty() ? "" : ", ") + text(key) + ": " + json;
    return *this;
  }
  std::string json() const { return '{' + body_ + '}'; }

 private:
  std::string body_;
};

}  // namespace edgevit
