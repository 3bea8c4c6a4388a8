#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "orbitsplit/weights.hpp"
#include "support/float_bits.hpp"
#include "support/pool.hpp"
#include "support/stop.hpp"
#include "weights/check.hpp"

namespace orbitsplit {

namespace weights {

namespace {

constexpr float largest_int8 = 127.0F;
constexpr double largest_int4 = 15.0;
constexpr double largest_int5 = 31.0;
constexpr double largest_unsigned = 255.0;

// Attempts for a group's scale: its range divided by the largest code - 1.5, - 1.4, ..., + 1.
constexpr int attempts = 26;

// int5 also tries whole numbers of steps from this one on: weights that were in 5 bits with one scale and no minimum, as
// Q5_0 has them, are multiples of a step and often use half of the codes on one side and fewer on the other.
constexpr int fewest_steps = 16;

template <class T>
void store(std::byte* bytes, T value) {
    std::memcpy(bytes, &value, sizeof value);
}

// The nearest integer, ties to even, of a number below 2^51.
double nearest(double value) {
    constexpr double magic = 6755399441055744.0;
    return (value + magic) - magic;
}

double rounded_within(double value, double largest) {
    return std::min(std::max(nearest(value), 0.0), largest);
}

// Ties away from zero, as in llama.cpp.
std::int8_t int8_code(float value) {
    const float magnitude = std::fabs(value);
    const float whole = std::floor(magnitude);
    const float code = std::min(whole + (magnitude - whole >= 0.5F ? 1.0F : 0.0F), largest_int8);
    return static_cast<std::int8_t>(value < 0 ? -code : code);
}

void quantize_int8(const float* values, std::size_t groups, std::byte* out) {
    for (std::size_t g = 0; g < groups; ++g, values += group, out += int8_group_bytes) {
        float largest = 0;
        for (std::size_t i = 0; i < group; ++i) largest = std::max(largest, std::fabs(values[i]));
        const float scale = largest / largest_int8;
        // Below it the scale is stored as 0, and its inverse may not be finite.
        const float inverse = scale < std::numeric_limits<float>::min() ? 0.0F : 1.0F / scale;
        store(out, float_bits::half_from_single(scale));
        for (std::size_t i = 0; i < group; ++i) store(out + 2 + i, int8_code(values[i] * inverse));
    }
}

// A group as scale * code - minimum, both at least 0.
struct Fit {
    double scale;
    double minimum;
};

// Sums over a group, weighted by importance v: of v, v w, v w w.
struct Moments {
    double v = 0;
    double w = 0;
    double ww = 0;
};

// The best fit for given codes (least squares), and its squared error.
struct Candidate {
    Fit fit;
    double error;
};

Candidate least_squares(const float* values, const float* importance, const Moments& moments, double inverse,
                        double minimum, double largest) {
    double q = 0;
    double qq = 0;
    double wq = 0;
    for (std::size_t i = 0; i < group; ++i) {
        const double w = values[i];
        const double code = rounded_within((w + minimum) * inverse, largest);
        const double weighted = (importance == nullptr ? 1.0 : double{importance[i]}) * code;
        q += weighted;
        qq += weighted * code;
        wq += weighted * w;
    }
    const double determinant = moments.v * qq - q * q;
    double scale = (moments.v * wq - moments.w * q) / determinant;
    double offset = (qq * moments.w - q * wq) / determinant;
    if (!(determinant > 0) || offset > 0) {
        scale = wq / qq;
        offset = 0;
    }
    if (!(scale > 0)) return {{0, 0}, std::numeric_limits<double>::infinity()};
    return {{scale, 0.0 - offset}, (moments.ww - scale * wq) - offset * moments.w};
}

Fit fit_group(const float* values, const float* importance, double largest) {
    double low = 0;
    double high = -std::numeric_limits<double>::infinity();
    Moments moments;
    for (std::size_t i = 0; i < group; ++i) {
        const double w = values[i];
        const double v = importance == nullptr ? 1.0 : double{importance[i]};
        low = std::min(low, w);
        high = std::max(high, w);
        moments.v += v;
        moments.w += v * w;
        moments.ww += (v * w) * w;
    }
    const double range = high - low;
    if (!(range > 0)) return {0, 0.0 - low};  // never -0
    Candidate best = {{range / largest, 0.0 - low}, std::numeric_limits<double>::infinity()};
    const auto attempt = [&](double steps) {
        const Candidate found = least_squares(values, importance, moments, steps / range, 0.0 - low, largest);
        if (found.error < best.error) best = found;
    };
    for (int k = 0; k < attempts; ++k) attempt((largest - 1.5) + 0.1 * k);
    if (largest == largest_int5)
        for (int steps = fewest_steps; steps < largest_int5 - 1; ++steps) attempt(steps);
    return best.fit;
}

// What a group's scale is stored as: at least 1 where it is not 0, so that the group's codes still differ.
std::uint8_t int4_scale(double scale, double unit) {
    if (!(scale > 0) || !(unit > 0)) return 0;
    return static_cast<std::uint8_t>(std::max(1.0, rounded_within(scale / unit, largest_unsigned)));
}

std::uint8_t int4_minimum(double minimum, double unit) {
    return unit > 0 ? static_cast<std::uint8_t>(rounded_within(minimum / unit, largest_unsigned)) : 0;
}

void write_codes(const float* values, double scale, double minimum, double largest, std::byte* out) {
    std::uint32_t codes[group];
    std::uint32_t fifth_bits = 0;
    for (std::size_t i = 0; i < group; ++i) {
        codes[i] = scale > 0
                       ? static_cast<std::uint32_t>(rounded_within((values[i] + minimum) / scale, largest))
                       : 0U;
        fifth_bits |= (codes[i] >> 4) << i;
    }
    for (std::size_t i = 0; i < int4_code_bytes; ++i)
        out[i] = static_cast<std::byte>((codes[i] & 15U) | (codes[i + int4_code_bytes] & 15U) << 4);
    if (largest == largest_int5) store(out + int4_code_bytes, fifth_bits);
}

// int4 or int5, by the largest code.
void quantize_with_minima(double largest_code, const float* values, const float* importance,
                          std::size_t groups, std::span<Fit> fits, std::byte* out) {
    const std::size_t code_bytes = largest_code == largest_int5 ? int5_code_bytes : int4_code_bytes;
    Fit largest = {0, 0};
    for (std::size_t g = 0; g < groups; ++g) {
        fits[g] = fit_group(values + g * group, importance == nullptr ? nullptr : importance + g * group,
                            largest_code);
        largest.scale = std::max(largest.scale, fits[g].scale);
        largest.minimum = std::max(largest.minimum, fits[g].minimum);
    }
    const auto scale_unit = static_cast<float>(largest.scale / largest_unsigned);
    const auto minimum_unit = static_cast<float>(largest.minimum / largest_unsigned);
    store(out, scale_unit);
    store(out + 4, minimum_unit);
    for (std::size_t g = 0; g < groups; ++g) {
        const std::uint8_t s = int4_scale(fits[g].scale, scale_unit);
        const std::uint8_t m = int4_minimum(fits[g].minimum, minimum_unit);
        store(out + int4_scales_at + g, s);
        store(out + int4_minima_at(groups) + g, m);
        write_codes(values + g * group, double{scale_unit} * s, double{minimum_unit} * m, largest_code,
                    out + int4_codes_at(groups) + g * code_bytes);
    }
}

// Throws for the first value of a row that the format cannot store.
void check_values(WeightFormat format, std::span<const float> row, std::size_t index) {
    // float16 rounds from 65520 on to infinity.
    constexpr float most_scale = 65520.0F;
    for (const float value : row) {
        const bool is_finite = std::fabs(value) < std::numeric_limits<float>::infinity();
        if (is_finite && (format != WeightFormat::int8 || std::fabs(value) / largest_int8 < most_scale))
            continue;
        throw std::invalid_argument(
            "row " + std::to_string(index) + " has a weight that " +
            (is_finite ? "int8 cannot store: the largest is 8.32e+06" : "is not finite"));
    }
}

void check_importance(std::span<const float> importance, std::int64_t columns) {
    if (importance.empty()) return;
    check_size("importance", importance.size(), " values", static_cast<std::uint64_t>(columns));
    for (const float value : importance)
        if (!(value >= 0 && value < std::numeric_limits<float>::infinity()))
            throw std::invalid_argument("importance must be finite and at least 0");
}

}  // namespace

}  // namespace weights

void quantize(WeightFormat format, std::span<const float> values, std::int64_t rows, std::int64_t columns,
              std::span<std::byte> out, std::span<const float> importance, const Execution& execution) {
    const std::uint64_t bytes = quantized_bytes(format, rows, columns);
    weights::check_size("out", out.size(), " bytes", bytes);
    const auto width = static_cast<std::size_t>(columns);
    weights::check_size("values", values.size(), " values", static_cast<std::size_t>(rows) * width);
    weights::check_importance(importance, columns);
    pool::check_threads(execution.threads);
    for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row)
        weights::check_values(format, values.subspan(row * width, width), row);
    const std::size_t groups = width / weights::group;
    const std::size_t row_bytes = weights::row_bytes(format, groups);
    pool::run_parts(static_cast<std::size_t>(rows), execution.threads, [&](std::size_t row) {
        throw_if_stopped(execution);
        const std::span<const float> source = values.subspan(row * width, width);
        std::byte* target = out.data() + row * row_bytes;
        if (format == WeightFormat::int8) return weights::quantize_int8(source.data(), groups, target);
        std::vector<weights::Fit> fits(groups);
        const double largest = format == WeightFormat::int5 ? weights::largest_int5 : weights::largest_int4;
        weights::quantize_with_minima(largest, source.data(),
                                      importance.empty() ? nullptr : importance.data(), groups, fits, target);
    });
}

}  // namespace orbitsplit
