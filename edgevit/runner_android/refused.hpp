// What a user of the runner can fix: one line that says what was given, what was expected, what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace edgevit {

struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Of json.cpp: the file that it reads, and what to do where that is not as expected.
inline const std::string kFile = "job.json";
inline const std::string kAgain = "; export the bundle, or write and build the runner, again";

}  // namespace edgevit
