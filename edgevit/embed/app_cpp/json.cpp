#include "json.hpp"

#include <cmath>
#include <locale>
#include <sstream>

#include "refused.hpp"

namespace edgevit {

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json document() {
    Json found = value(0);
    space();
    if (at_ != text_.size()) fail("more after its end");
    return found;
  }

 private:
  static constexpr int kDepth = 64;  // a manifest nests five levels

  [[noreturn]] void fail(const std::string& why) const {
    throw Refused("not valid JSON at byte " + std::to_string(at_) + ": " + why);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  char next() {
    if (at_ >= text_.size()) fail("it ends too early");
    return text_[at_++];
  }

  void space() {
    while (at_ < text_.size() && (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t')) ++at_;
  }

  void word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) fail("unknown word");
    at_ += expected.size();
  }

  Json value(int depth) {
    if (depth > kDepth) fail("nested too deep");
    space();
    Json found;
    switch (peek()) {
      case '{': found.value_ = members(depth); break;
      case '[': found.value_ = elements(depth); break;
      case '"': found.value_ = text(); break;
      case 't': word("true"); found.value_ = true; break;
      case 'f': word("false"); found.value_ = false; break;
      case 'n': word("null"); break;
      default: found.value_ = number();
    }
    return found;
  }

  Json::Object members(int depth) {
    Json::Object found;
    next();
    for (space(); peek() != '}'; space()) {
      if (!found.empty() && next() != ',') fail("expected , or }");
      space();
      if (peek() != '"') fail("expected a key");
      std::string key = text();
      space();
      if (next() != ':') fail("expected :");
      if (!found.emplace(std::move(key), value(depth + 1)).second) fail("a key stands twice");
    }
    next();
    return found;
  }

  Json::Array elements(int depth) {
    Json::Array found;
    next();
    for (space(); peek() != ']'; space()) {
      if (!found.empty() && next() != ',') fail("expected , or ]");
      found.push_back(value(depth + 1));
    }
    next();
    return found;
  }

  double number() {
    const size_t start = at_;
    while (at_ < text_.size() && std::string_view("+-.0123456789eE").find(peek()) != std::string_view::npos) ++at_;
    std::istringstream digits{std::string(text_.substr(start, at_ - start))};
    digits.imbue(std::locale::classic());  // a decimal point whatever the user's language
    double found = 0;
    if (!(digits >> found) || digits.peek() != std::char_traits<char>::eof() || !std::isfinite(found)) fail("no number");
    return found;
  }

  unsigned hex4() {
    unsigned found = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = next();
      const size_t digit = std::string_view("0123456789abcdef").find(static_cast<char>(c | ('A' <= c && c <= 'F' ? 32 : 0)));
      if (digit == std::string_view::npos) fail("bad \\u escape");
      found = found * 16 + static_cast<unsigned>(digit);
    }
    return found;
  }

  void unicode(std::string& out) {
    unsigned code = hex4();
    if (code >= 0xD800 && code < 0xDC00) {
      if (next() != '\\' || next() != 'u') fail("half of a pair");
      const unsigned low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("half of a pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    const auto put = [&out](unsigned byte) { out += static_cast<char>(byte); };
    if (code < 0x80) {
      put(code);
    } else if (code < 0x800) {
      put(0xC0 | code >> 6), put(0x80 | (code & 63));
    } else if (code < 0x10000) {
      put(0xE0 | code >> 12), put(0x80 | (code >> 6 & 63)), put(0x80 | (code & 63));
    } else {
      put(0xF0 | code >> 18), put(0x80 | (code >> 12 & 63)), put(0x80 | (code >> 6 & 63)), put(0x80 | (code & 63));
    }
  }

  std::string text() {
    std::string found;
    next();
    for (char c = next(); c != '"'; c = next()) {
      if (static_cast<unsigned char>(c) < 32) fail("a control character in a text");
      if (c != '\\') {
        found += c;
        continue;
      }
      switch (const char escaped = next()) {
        case '"': case '\\': case '/': found += escaped; break;
        case 'b': found += '\b'; break;
        case 'f': found += '\f'; break;
        case 'n': found += '\n'; break;
        case 'r': found += '\r'; break;
        case 't': found += '\t'; break;
        case 'u': unicode(found); break;
        default: fail("unknown escape");
      }
    }
    return found;
  }

  std::string_view text_;
  size_t at_ = 0;
};

namespace {

template <class T, class V>
const T& as(const V& value, const char* what) {
  if (const T* found = std::get_if<T>(&value)) return *found;
  throw Refused("a value of " + kFile + " is not " + what + kAgain);
}

}  // namespace

Json Json::parse(std::string_view text) { return JsonReader(text).document(); }

bool Json::has(const std::string& key) const { return object().count(key) != 0; }

const Json& Json::at(const std::string& key) const {
  const auto& members = object();
  const auto found = members.find(key);
  if (found == members.end()) throw Refused(kFile + " lacks " + key + kAgain);
  return found->second;
}

const std::string& Json::string() const { return as<std::string>(value_, "a text"); }
double Json::number() const { return as<double>(value_, "a number"); }
const Json::Array& Json::array() const { return as<Array>(value_, "a list"); }
const Json::Object& Json::object() const { return as<Object>(value_, "an object"); }

long Json::integer() const {
  const double found = number();
  if (found != std::floor(found) || std::fabs(found) > 1e9) throw Refused("a value of " + kFile + " is no whole number" + kAgain);
  return static_cast<long>(found);
}

std::vector<long> Json::integers() const {
  std::vector<long> found;
  for (const Json& one : array()) found.push_back(one.integer());
  return found;
}

}  // namespace edgevit
