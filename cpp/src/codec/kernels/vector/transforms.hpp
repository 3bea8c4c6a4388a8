// The transforms of calibrated codecs: Hadamard and a whole matrix. All in an anonymous namespace, so that each file has
// its own copy.
//
// A `Set` has a number of `lanes`, the vector types Floats and Ints of so many, and partner<distance>(y): the lanes of y
// whose numbers differ in the bit of that distance, swapped.
#pragma once

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

template <class Set>
inline typename Set::Floats load_floats(const float* from) {
    typename Set::Floats to;
    __builtin_memcpy(&to, from, sizeof to);
    return to;
}

template <class Floats>
inline void store_floats(const Floats& from, float* to) {
    __builtin_memcpy(to, &from, sizeof from);
}

// The butterflies whose distance is within a register: first + second, first - second.
template <class Set, std::size_t distance>
inline typename Set::Floats butterfly(typename Set::Floats y) {
    typename Set::Ints negative;
    for (std::size_t lane = 0; lane < Set::lanes; ++lane)
        negative[lane] = (lane & distance) != 0 ? static_cast<int>(0x80000000U) : 0;
    const auto signed_y = reinterpret_cast<typename Set::Ints>(y) ^ negative;
    return Set::template partner<distance>(y) + reinterpret_cast<typename Set::Floats>(signed_y);
}

template <class Set>
inline typename Set::Floats transform_lanes(typename Set::Floats y, std::size_t block) {
    if (block > 1) y = butterfly<Set, 1>(y);
    if (block > 2) y = butterfly<Set, 2>(y);
    if constexpr (Set::lanes > 4)
        if (block > 4) y = butterfly<Set, 4>(y);
    return y;
}

// The butterflies of two distances, `distance` and twice that, in one pass.
template <class Set>
void two_distances(float* y, std::size_t block, std::size_t distance, float scale) {
    for (std::size_t start = 0; start < block; start += 4 * distance)
        for (std::size_t i = start; i < start + distance; i += Set::lanes) {
            const auto a = load_floats<Set>(y + i);
            const auto b = load_floats<Set>(y + i + distance);
            const auto c = load_floats<Set>(y + i + 2 * distance);
            const auto d = load_floats<Set>(y + i + 3 * distance);
            const auto ab = a + b;
            const auto cd = c + d;
            const auto a_b = a - b;
            const auto c_d = c - d;
            store_floats((ab + cd) * scale, y + i);
            store_floats((a_b + c_d) * scale, y + i + distance);
            store_floats((ab - cd) * scale, y + i + 2 * distance);
            store_floats((a_b - c_d) * scale, y + i + 3 * distance);
        }
}

template <class Set>
void one_distance(float* y, std::size_t distance, float scale) {
    for (std::size_t i = 0; i < distance; i += Set::lanes) {
        const auto a = load_floats<Set>(y + i);
        const auto b = load_floats<Set>(y + i + distance);
        store_floats((a + b) * scale, y + i);
        store_floats((a - b) * scale, y + i + distance);
    }
}

// A block larger than a register; multiplying by 1 is exact.
template <class Set>
void transform_block(float* y, std::size_t block, float scale) {
    for (std::size_t i = 0; i < block; i += Set::lanes)
        store_floats(transform_lanes<Set>(load_floats<Set>(y + i), block), y + i);
    std::size_t distance = Set::lanes;
    for (; 4 * distance <= block; distance *= 4)
        two_distances<Set>(y, block, distance, 4 * distance == block ? scale : 1.0F);
    if (2 * distance == block) one_distance<Set>(y, distance, scale);
}

template <class Set>
void hadamard(float* y, std::size_t count, std::size_t block, float scale) {
    if (block > Set::lanes) {
        for (std::size_t i = 0; i < count; i += block) transform_block<Set>(y + i, block, scale);
        return;
    }
    const std::size_t whole = count / Set::lanes * Set::lanes;
    for (std::size_t i = 0; i < whole; i += Set::lanes)
        store_floats(transform_lanes<Set>(load_floats<Set>(y + i), block) * scale, y + i);
    if (whole == count) return;
    float rest[Set::lanes] = {};
    __builtin_memcpy(rest, y + whole, (count - whole) * sizeof(float));
    store_floats(transform_lanes<Set>(load_floats<Set>(rest), block) * scale, rest);
    __builtin_memcpy(y + whole, rest, (count - whole) * sizeof(float));
}

// Rows of the matrix that are multiplied before the next panel, so that their part of a panel stays in the L1 cache.
constexpr std::size_t factor_rows = 64;
// With Set::panel registers each these are as many accumulators as registers hold.
constexpr std::size_t panel_rows = 6;

// Adds `count` rows times the matrix's rows [first, last) to a panel of `registers` of results, so that each number of
// the matrix is loaded once for all rows. Sums are in the order of the factors, as every kernel must.
template <class Set, std::size_t count, std::size_t registers>
void multiply_panel(const float* x, std::size_t length, const float* matrix, std::size_t first,
                    std::size_t last, float* y) {
    typename Set::Floats sums[count][registers];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < count; ++row)
#pragma GCC unroll 4
        for (std::size_t k = 0; k < registers; ++k)
            sums[row][k] =
                first == 0 ? typename Set::Floats{} : load_floats<Set>(y + row * length + k * Set::lanes);
    for (std::size_t i = first; i < last; ++i) {
        typename Set::Floats factors[registers];
#pragma GCC unroll 4
        for (std::size_t k = 0; k < registers; ++k)
            factors[k] = load_floats<Set>(matrix + i * length + k * Set::lanes);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < count; ++row)
#pragma GCC unroll 4
            for (std::size_t k = 0; k < registers; ++k)
                sums[row][k] = sums[row][k] + x[row * length + i] * factors[k];
    }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < count; ++row)
#pragma GCC unroll 4
        for (std::size_t k = 0; k < registers; ++k)
            store_floats(sums[row][k], y + row * length + k * Set::lanes);
}

template <class Set, std::size_t registers>
void multiply_column(const float* x, layout::Rows rows, const float* matrix, std::size_t first,
                     std::size_t last, float* y) {
    const std::size_t length = rows.length;
    std::size_t row = 0;
    for (; row + panel_rows <= rows.count; row += panel_rows)
        multiply_panel<Set, panel_rows, registers>(x + row * length, length, matrix, first, last,
                                                   y + row * length);
    for (; row + 2 <= rows.count; row += 2)
        multiply_panel<Set, 2, registers>(x + row * length, length, matrix, first, last, y + row * length);
    if (row < rows.count)
        multiply_panel<Set, 1, registers>(x + row * length, length, matrix, first, last, y + row * length);
}

// The columns from `j` on, fewer than a register.
void multiply_rest(const float* x, layout::Rows rows, const float* matrix, std::size_t j, float* y) {
    const std::size_t length = rows.length;
    for (std::size_t row = 0; row < rows.count; ++row)
        for (std::size_t c = j; c < length; ++c) {
            float sum = 0;
            for (std::size_t i = 0; i < length; ++i) sum += x[row * length + i] * matrix[i * length + c];
            y[row * length + c] = sum;
        }
}

template <class Set>
void multiply(const float* x, layout::Rows rows, const float* matrix, float* y) {
    const std::size_t length = rows.length;
    const std::size_t whole = length / Set::lanes * Set::lanes;
    for (std::size_t first = 0; first < length; first += factor_rows) {
        const std::size_t last = length - first < factor_rows ? length : first + factor_rows;
        std::size_t j = 0;
        for (; j + Set::panel * Set::lanes <= whole; j += Set::panel * Set::lanes)
            multiply_column<Set, Set::panel>(x, rows, matrix + j, first, last, y + j);
        for (; j < whole; j += Set::lanes) multiply_column<Set, 1>(x, rows, matrix + j, first, last, y + j);
    }
    multiply_rest(x, rows, matrix, whole, y);
}

}  // namespace

}  // namespace orbitsplit::kernels
