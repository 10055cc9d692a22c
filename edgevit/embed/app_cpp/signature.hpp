// Ed25519 (RFC 8032) by OpenSSL.
#pragma once

#include <filesystem>
#include <string>

namespace edgevit {

// Throws Refused unless `file` holds the signature of `text` by the key (64 hexadecimal digits).
void check_signature(const std::filesystem::path& file, const std::string& text, const std::string& key);

}  // namespace edgevit
