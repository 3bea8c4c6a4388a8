// Messages of errors from texts and numbers. Not by a std::ostringstream, which brings the locales of the standard library
// into a program that has no other use for them.
#pragma once

#include <concepts>
#include <string>
#include <string_view>

#include "support/text.hpp"

namespace orbitsplit::message {

inline void append(std::string& message, std::string_view text) { message += text; }
inline void append(std::string& message, char character) { message += character; }
inline void append(std::string& message, std::integral auto number) { message += std::to_string(number); }
inline void append(std::string& message, std::floating_point auto number) { message += text::number(number); }

template <class... Parts>
std::string joined(const Parts&... parts) {
    std::string message;
    (append(message, parts), ...);
    return message;
}

}  // namespace orbitsplit::message
