// What a user of the app can fix: one line that says what was given, what was expected, what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace edgevit {

struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Of json.cpp: the file that it reads, and what to do where that is not as expected.
inline const std::string kFile = "manifest.json";
inline const std::string kAgain = "; export and embed it again";

}  // namespace edgevit
