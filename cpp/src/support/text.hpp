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

}  // namespace orbitsplit::text
