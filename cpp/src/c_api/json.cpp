#include "c_api/json.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <stdexcept>

namespace orbitsplit::c_api {

namespace {

constexpr int deepest = 32;  // documents of codebooks have 6 levels

constexpr std::uint32_t first_high_surrogate = 0xD800;
constexpr std::uint32_t first_low_surrogate = 0xDC00;
constexpr std::uint32_t end_of_surrogates = 0xE000;

void append_utf8(std::string& text, std::uint32_t code) {
    const auto add = [&](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
    const auto continuation = [&](int shift) { add(0x80U | (code >> shift & 0x3FU)); };
    if (code < 0x80) return add(code);
    if (code < 0x800) {
        add(0xC0U | code >> 6);
    } else if (code < 0x10000) {
        add(0xE0U | code >> 12);
        continuation(6);
    } else {
        add(0xF0U | code >> 18);
        continuation(12);
        continuation(6);
    }
    continuation(0);
}

class Parser {
  public:
    explicit Parser(std::string_view text) : text_(text) {}

    Json document() {
        Json value = next_value(0);
        skip_space();
        if (at_ != text_.size()) refuse("more after the value");
        return value;
    }

  private:
    [[noreturn]] void refuse(const char* what) const {
        throw std::invalid_argument(std::string("JSON has ") + what + " at byte " + std::to_string(at_));
    }

    bool is_at_end() const { return at_ == text_.size(); }

    void skip_space() {
        constexpr std::string_view space = " \t\n\r";
        while (!is_at_end() && space.find(text_[at_]) != std::string_view::npos) ++at_;
    }

    bool take_if(char expected) {
        if (is_at_end() || text_[at_] != expected) return false;
        ++at_;
        return true;
    }

    bool take_word(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Json next_value(int depth) {
        if (depth > deepest) refuse("more than 32 levels");
        skip_space();
        Json value;
        if (take_if('{')) {
            value.kind = Json::Kind::object;
            value.members = next_members(depth);
        } else if (take_if('[')) {
            value.kind = Json::Kind::array;
            value.items = next_items(depth);
        } else if (take_if('"')) {
            value.kind = Json::Kind::string;
            value.text = next_string();
        } else if (take_word("true")) {
            value.kind = Json::Kind::boolean;
            value.is_true = true;
        } else if (take_word("false")) {
            value.kind = Json::Kind::boolean;
        } else if (!take_word("null")) {
            value.kind = Json::Kind::number;
            value.number = next_number();
        }
        return value;
    }

    std::vector<Json> next_items(int depth) {
        std::vector<Json> items;
        skip_space();
        if (take_if(']')) return items;
        do {
            items.push_back(next_value(depth + 1));
            skip_space();
        } while (take_if(','));
        if (!take_if(']')) refuse("an array without an end");
        return items;
    }

    std::vector<JsonMember> next_members(int depth) {
        std::vector<JsonMember> members;
        skip_space();
        if (take_if('}')) return members;
        do {
            skip_space();
            if (!take_if('"')) refuse("a member without a key");
            std::string key = next_string();
            skip_space();
            if (!take_if(':')) refuse("a key without a value");
            members.push_back({std::move(key), next_value(depth + 1)});
            skip_space();
        } while (take_if(','));
        if (!take_if('}')) refuse("an object without an end");
        std::ranges::sort(members, {}, &JsonMember::key);
        if (std::ranges::adjacent_find(members, {}, &JsonMember::key) != members.end())
            refuse("an object with a key twice");
        return members;
    }

    std::string next_string() {
        std::string text;
        while (true) {
            if (is_at_end()) refuse("a string without an end");
            const char next = text_[at_++];
            if (next == '"') return text;
            if (static_cast<unsigned char>(next) < 0x20) refuse("a control character in a string");
            if (next == '\\')
                append_escaped(text);
            else
                text.push_back(next);
        }
    }

    void append_escaped(std::string& text) {
        constexpr std::string_view names = "\"\\/bfnrt";
        constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
        if (is_at_end()) refuse("a string without an end");
        const char name = text_[at_++];
        if (name == 'u') return append_utf8(text, next_code());
        const std::size_t index = names.find(name);
        if (index == std::string_view::npos) refuse("an unknown escape in a string");
        text.push_back(meanings[index]);
    }

    // A character of one or, beyond 16 bits, two escapes.
    std::uint32_t next_code() {
        const std::uint32_t first = next_four_digits();
        if (first < first_high_surrogate || first >= end_of_surrogates) return first;
        if (first >= first_low_surrogate || !take_word("\\u")) refuse("half a character in a string");
        const std::uint32_t second = next_four_digits();
        if (second < first_low_surrogate || second >= end_of_surrogates)
            refuse("half a character in a string");
        return 0x10000 + ((first - first_high_surrogate) << 10) + (second - first_low_surrogate);
    }

    std::uint32_t next_four_digits() {
        std::uint32_t code = 0;
        const std::string_view digits = text_.substr(at_, 4);
        const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
        if (error != std::errc{} || digits.size() < 4 || end != digits.data() + 4)
            refuse("an escape without four digits");
        at_ += 4;
        return code;
    }

    std::size_t take_digits() {
        const std::size_t first = at_;
        while (!is_at_end() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
        return at_ - first;
    }

    double next_number() {
        const std::size_t first = at_;
        take_if('-');
        const bool begins_with_zero = !is_at_end() && text_[at_] == '0';
        const std::size_t digits = take_digits();
        if (digits == 0) refuse("no value");
        if (begins_with_zero && digits > 1) refuse("a number with a leading zero");
        if (take_if('.') && take_digits() == 0) refuse("a number without digits after its point");
        if (take_if('e') || take_if('E')) {
            if (!take_if('+')) take_if('-');
            if (take_digits() == 0) refuse("a number without digits in its exponent");
        }
        double value = 0;
        const auto [end, error] = std::from_chars(text_.data() + first, text_.data() + at_, value);
        if (error != std::errc{} || end != text_.data() + at_ || !std::isfinite(value))
            refuse("a number beyond the range of float64");
        return value;
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view key) const {
    const auto found = std::ranges::lower_bound(members, key, {}, &JsonMember::key);
    return found != members.end() && found->key == key ? &found->value : nullptr;
}

Json parse_json(std::string_view text) { return Parser(text).document(); }

const Json& member(const Json& object, std::string_view key, const std::string& what, Json::Kind kind) {
    const Json* found = object.find(key);
    if (found == nullptr || found->kind != kind)
        throw std::invalid_argument(what + " has no valid \"" + std::string(key) + "\"");
    return *found;
}

}  // namespace orbitsplit::c_api
