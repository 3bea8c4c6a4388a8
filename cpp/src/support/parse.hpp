// Numbers read from a text, whatever the locale.
#pragma once

#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>

#if defined(__APPLE__)
#include <xlocale.h>

#include <cstdlib>
#endif

namespace orbitsplit::parse {

// Nothing unless the whole text is a number that the type can have, without spaces or a plus sign before it.
template <class Number>
std::optional<Number> number(std::string_view text) {
#if defined(__APPLE__)
    // The library of macOS reads floating-point numbers by from_chars only since 2025.
    if constexpr (std::is_floating_point_v<Number>) {
        if (text.empty() || text.find_first_not_of("0123456789.eE+-") != text.npos || text[0] == '+')
            return std::nullopt;
        const std::string copy(text);
        char* end = nullptr;
        const double value = strtod_l(copy.c_str(), &end, nullptr);  // null: the locale "C"
        return end == copy.c_str() + copy.size() ? std::optional<Number>(value) : std::nullopt;
    } else
#endif
    {
        Number value{};
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool is_read = error == std::errc{} && end == text.data() + text.size();
        return is_read ? std::optional(value) : std::nullopt;
    }
}

}  // namespace orbitsplit::parse
