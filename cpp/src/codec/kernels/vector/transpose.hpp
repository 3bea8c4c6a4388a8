// Transposes bytes in tiles of 16 x 16, which registers of any instruction set hold. All in an anonymous namespace, so
// that each file has its own copy.
#pragma once

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

constexpr std::size_t side = 16;

using Bytes = std::int8_t __attribute__((vector_size(side)));

inline Bytes zip_low(Bytes a, Bytes b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Bytes zip_high(Bytes a, Bytes b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Shuffles rows like cards: after four times every byte has moved from its row to its column.
inline void interleave(const Bytes (&in)[side], Bytes (&out)[side]) {
#pragma GCC unroll 8
    for (std::size_t k = 0; k < side / 2; ++k) {
        out[2 * k] = zip_low(in[k], in[k + side / 2]);
        out[2 * k + 1] = zip_high(in[k], in[k + side / 2]);
    }
}

inline void transpose(Bytes (&m)[side]) {
    Bytes other[side];
    interleave(m, other);
    interleave(other, m);
    interleave(m, other);
    interleave(other, m);
}

// At most `side` rows and columns of a matrix, with the strides of rows in memory.
struct Tile {
    std::size_t rows;
    std::size_t columns;
};

inline void load_tile(const std::int8_t* in, std::size_t stride, Tile tile, Bytes (&m)[side]) {
    for (std::size_t row = 0; row < tile.rows; ++row)
        if (tile.columns == side) {
            __builtin_memcpy(&m[row], in + row * stride, side);
        } else {
            m[row] = Bytes{};
            __builtin_memcpy(&m[row], in + row * stride, tile.columns);
        }
    for (std::size_t row = tile.rows; row < side; ++row) m[row] = Bytes{};
}

inline void store_tile(const Bytes (&m)[side], Tile tile, std::int8_t* out, std::size_t stride) {
    for (std::size_t row = 0; row < tile.rows; ++row)
        __builtin_memcpy(out + row * stride, &m[row], tile.columns);
}

// A matrix of `rows` of `in` to as many columns of `out`.
void transpose_bytes(const std::int8_t* in, layout::Rows rows, std::int8_t* out) {
    const auto at_most = [](std::size_t left) { return left < side ? left : side; };
    for (std::size_t c = 0; c < rows.length; c += side)
        for (std::size_t row = 0; row < rows.count; row += side) {
            const Tile tile{at_most(rows.count - row), at_most(rows.length - c)};
            const std::int8_t* from = in + row * rows.length + c;
            std::int8_t* to = out + c * rows.count + row;
            Bytes m[side];
            if (tile.rows == side && tile.columns == side) {
#pragma GCC unroll 16
                for (std::size_t k = 0; k < side; ++k) __builtin_memcpy(&m[k], from + k * rows.length, side);
                transpose(m);
#pragma GCC unroll 16
                for (std::size_t k = 0; k < side; ++k) __builtin_memcpy(to + k * rows.count, &m[k], side);
            } else {
                load_tile(from, rows.length, tile, m);
                transpose(m);
                store_tile(m, {tile.columns, tile.rows}, to, rows.count);
            }
        }
}

void to_columns(const std::int8_t* in, layout::Rows rows, std::int8_t* out) {
    transpose_bytes(in, rows, out);
}

void to_rows(const std::int8_t* in, layout::Rows rows, std::int8_t* out) {
    transpose_bytes(in, {rows.length, rows.count}, out);
}

}  // namespace

}  // namespace orbitsplit::kernels
