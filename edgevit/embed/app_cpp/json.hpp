// JSON (RFC 8259), as much as a manifest or a job needs. Input is untrusted: every error is a Refused, depth is bounded.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace edgevit {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json>;

  static Json parse(std::string_view text);

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  bool has(const std::string& key) const;
  const Json& at(const std::string& key) const;  // of an object; Refused names the key
  const std::string& string() const;
  double number() const;
  long integer() const;
  std::vector<long> integers() const;
  const Array& array() const;
  const Object& object() const;

 private:
  friend class JsonReader;
  std::variant<std::nullptr_t, bool, double, std::string, Array, Object> value_ = nullptr;
};

}  // namespace edgevit
