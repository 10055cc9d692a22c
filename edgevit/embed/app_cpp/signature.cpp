#include "signature.hpp"

#include <memory>
#include <openssl/evp.h>
#include <vector>

#include "bundle.hpp"
#include "refused.hpp"

namespace edgevit {

namespace {

const unsigned char* bytes(const std::string& text) { return reinterpret_cast<const unsigned char*>(text.data()); }

}  // namespace

void check_signature(const std::filesystem::path& file, const std::string& text, const std::string& key) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(file, none)) throw Refused("the bundle is not signed: it has no manifest.sig");
  const std::string signature = read_file(file);
  std::vector<unsigned char> raw;
  for (size_t i = 0; i + 1 < key.size(); i += 2) raw.push_back(static_cast<unsigned char>(std::stoi(key.substr(i, 2), nullptr, 16)));
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> loaded(
      EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, raw.data(), raw.size()), EVP_PKEY_free);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  const bool good = loaded && context && EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, loaded.get()) == 1 &&
                    EVP_DigestVerify(context.get(), bytes(signature), signature.size(), bytes(text), text.size()) == 1;
  if (!good) throw Refused("manifest.sig is not by this app's key, or manifest.json was changed");
}

}  // namespace edgevit
