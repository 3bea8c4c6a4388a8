// Numbers as they appear in messages. The Numba twin writes the same text.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

namespace orbitsplit::text {

inline std::string printed(const char* format, double value) {
    char buffer[64];
    std::snprintf(buffer, sizeof buffer, format, value);
    return buffer;
}

inline std::string number(double value) {
    if (std::isnan(value)) return "nan";  // printf may print the sign of a NaN
    return printed("%.6g", value);
}

inline std::string bytes(double value) {
    const double size = std::fabs(value);
    if (size >= 1e9) return printed("%.6g", value / 1e9) + " GB";
    if (size >= 1e6) return printed("%.6g", value / 1e6) + " MB";
    if (size >= 1e3) return printed("%.6g", value / 1e3) + " kB";
    return printed("%.6g", value) + " B";
}

// With as few digits, six at least, as tell a number from another one.
inline std::string distinct(double value, double other) {
    char buffer[64];
    char compared[64];
    for (int digits = 6; digits <= 17; ++digits) {
        std::snprintf(buffer, sizeof buffer, "%.*g", digits, value);
        std::snprintf(compared, sizeof compared, "%.*g", digits, other);
        if (std::string(buffer) != compared) break;
    }
    return buffer;
}

// The same for a number that is compared to another one.
inline std::string number(double value, double other) {
    return value == other ? number(value) : distinct(value, other);
}

inline std::string bytes(double value, double other) {
    const std::string rounded = bytes(value);
    return value == other || rounded != bytes(other) ? rounded : distinct(value, other) + " B";
}

}  // namespace orbitsplit::text
