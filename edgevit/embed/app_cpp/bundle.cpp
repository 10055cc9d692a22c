#include "bundle.hpp"

#include <fstream>
#include <iterator>
#include <sstream>

#include "refused.hpp"
#include "sha256.hpp"
#ifdef PUBLIC_KEY
#include "signature.hpp"
#endif

namespace fs = std::filesystem;

namespace edgevit {

namespace {

constexpr int kSchema = 1;

// A relative path with forward slashes that never leaves the bundle.
bool is_inside(const std::string& name) {
  if (name.empty() || name.back() == '/' || name.find('\\') != name.npos || name.find(':') != name.npos || name.find('\0') != name.npos) {
    return false;
  }
  std::istringstream parts(name);
  for (std::string part; std::getline(parts, part, '/');) {
    if (part.empty() || part == "." || part == "..") return false;
  }
  return true;
}

bool is_linked(const fs::path& bundle, const std::string& name) {
  fs::path at = bundle;
  for (const fs::path& part : fs::path(name)) {
    at /= part;
    std::error_code none;
    if (fs::is_symlink(at, none)) return true;
  }
  return false;
}

void check_file(const fs::path& bundle, const std::string& name, const std::string& digest) {
  if (!is_inside(name)) throw Refused("the manifest names " + name + ", which is not a path inside the bundle");
  std::error_code none;
  if (is_linked(bundle, name) || !fs::is_regular_file(bundle / name, none)) {
    throw Refused(bundle.string() + " is incomplete: " + name + " is missing" + kAgain);
  }
  std::ifstream file(bundle / name, std::ios::binary);
  Sha256 hash;
  std::vector<char> part(1 << 16);
  while (file.read(part.data(), static_cast<std::streamsize>(part.size())) || file.gcount() > 0) {
    hash.add(part.data(), static_cast<size_t>(file.gcount()));
  }
  if (hash.hex() != digest) {
    throw Refused(bundle.string() + ": " + name + " is not the file that was exported (sha256 differs)" + kAgain);
  }
}

}  // namespace

std::string read_file(const fs::path& path) {
  std::error_code none;
  std::ifstream file(path, std::ios::binary);
  if (!file || !fs::is_regular_file(path, none)) throw Refused(path.string() + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

Json read_manifest(const fs::path& bundle) {
  const fs::path path = bundle / "manifest.json";
  std::error_code none;
  if (!fs::is_regular_file(path, none)) throw Refused(bundle.string() + " is not a bundle: it has no manifest.json");
  const std::string text = read_file(path);
#ifdef PUBLIC_KEY
  check_signature(bundle / "manifest.sig", text, PUBLIC_KEY);
#endif
  Json manifest;
  try {
    manifest = Json::parse(text);
  } catch (const Refused& error) {
    throw Refused(path.string() + ": " + error.what() + kAgain);
  }
  const long schema = manifest.at("schema").integer();
  if (schema != kSchema) {
    throw Refused("manifest.json has schema " + std::to_string(schema) + "; this loader reads schema " + std::to_string(kSchema));
  }
  const auto& files = manifest.at("files").object();
  for (const auto& [name, digest] : files) check_file(bundle, name, digest.string());
  if (!files.count(manifest.at("entry").string())) throw Refused("the entry is not among the files of manifest.json" + kAgain);
  return manifest;
}

std::vector<std::string> read_labels(const fs::path& bundle, const Json& manifest) {
  std::vector<std::string> found;
  if (!manifest.has("labels") || manifest.at("labels").is_null()) {
    const long classes = manifest.at("output").at("shape").integers().back();
    for (long i = 0; i < classes; ++i) found.push_back("class " + std::to_string(i));
    return found;
  }
  const std::string name = manifest.at("labels").string();
  if (!manifest.at("files").has(name)) throw Refused("labels are not among the files of manifest.json" + kAgain);
  std::istringstream lines(read_file(bundle / name));
  for (std::string line; std::getline(lines, line);) found.push_back(line);
  return found;
}

}  // namespace edgevit
