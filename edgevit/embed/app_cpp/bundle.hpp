// A bundle on disk: verified before anything of it is used.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "json.hpp"

namespace edgevit {

std::string read_file(const std::filesystem::path& path);  // Refused where it cannot be read

// The manifest of a bundle whose files all have the sha256 it names. Refused.
Json read_manifest(const std::filesystem::path& bundle);

// A name a class; without labels their numbers.
std::vector<std::string> read_labels(const std::filesystem::path& bundle, const Json& manifest);

}  // namespace edgevit
