// The numeric kernels of the codecs, without framing: one struct of function pointers for each topic.
//
// scalar/ is the specification. The folder of an instruction set fills in the same structs for the topics in which it
// is faster, and produces the same bytes. Its files are compiled for processors that may not be the one that runs, so
// they include only this header, similar ones and intrinsics, and define everything but the tables below in anonymous
// namespaces: the linker could otherwise keep their copy of an inline function of the standard library for all
// callers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/kernels/rans.hpp"
#include "codec/kernels/rows.hpp"
#include "support/isa.hpp"

namespace orbitsplit::kernels {

// Functions that depend on the dtype of the array are arrays indexed by DType.
inline constexpr std::size_t dtypes = 3;

// Values to bfloat16 and back; on conversion back finite values stay finite.
struct Convert {
    void (*to_bf16[dtypes])(const std::byte* in, std::size_t count, std::byte* out);
    void (*from_bf16[dtypes])(const std::byte* in, std::size_t count, std::byte* out);
};

// Groups of each row to one bfloat16 scale and codes, and back. Quantising returns false if a value is not finite,
// dequantising if a scale is not a positive, normal, finite number.
struct Groups {
    using Quantise = bool (*)(const std::byte* in, layout::Rows rows, std::size_t group, std::byte* scales,
                              std::byte* codes);
    using Dequantise = bool (*)(const std::byte* scales, const std::byte* codes, layout::Rows rows,
                                std::size_t group, std::byte* out);
    Quantise quantise_int8[dtypes];
    Quantise quantise_int4[dtypes];
    Dequantise dequantise_int8[dtypes];
    Dequantise dequantise_int4[dtypes];
};

struct Select {
    // The `kept` largest magnitudes of each row, ties by lowest index: their values (16 bits each) and a bitmap of
    // their positions, row after row. Returns false if a value is not finite. `scratch` has room for two rows.
    bool (*select_largest[dtypes])(const std::byte* in, layout::Rows rows, std::size_t kept,
                                   std::uint32_t* scratch, std::byte* values, std::byte* bitmaps);

    // The positions in bitmaps as gaps: for each the number of positions skipped since the last one, as the sum of
    // bytes of which only the last is below 255. Returns their size, or `limit` if they are not shorter.
    std::size_t (*gaps_of_bitmaps)(const std::byte* bitmaps, layout::Rows rows, std::byte* gaps,
                                   std::size_t limit);

    // The reverse of both, with zeros elsewhere. Returns false unless each row has exactly `kept` positions.
    bool (*place_by_bitmap[dtypes])(const std::byte* values, const std::byte* bitmaps, layout::Rows rows,
                                    std::size_t kept, std::byte* out);
    bool (*place_by_gaps[dtypes])(const std::byte* values, const std::byte* gaps, std::size_t gap_bytes,
                                  layout::Rows rows, std::size_t kept, std::byte* out);
};

// The quantiser of a calibrated codec: one number for each channel; null means zeros.
struct ChannelScales {
    const float* shift;
    const float* step;
    const float* inverse_step;
    const float* threshold;
    float rounding;
    float shrink;
};

inline constexpr std::int8_t escape_code = -128;
inline constexpr std::size_t not_finite = ~std::size_t{0};

// Rows of float32 and their codes.
struct Channels {
    // Codes, and the bfloat16 values of escapes. Returns the number of escapes, or not_finite.
    std::size_t (*quantise)(const std::byte* in, layout::Rows rows, const ChannelScales& scales,
                            std::int8_t* codes, std::byte* values);

    // The reverse. Returns how many of `count` values were used, or not_finite, also if there are too few.
    std::size_t (*dequantise)(const std::int8_t* codes, layout::Rows rows, const ChannelScales& scales,
                              const std::byte* values, std::size_t count, std::byte* out);

    // In place, on consecutive blocks whose size is a power of two; multiplied by `scale` at the end.
    void (*hadamard)(float* y, std::size_t count, std::size_t block, float scale);

    // Transposes bytes of at most 64 rows: out[column * rows + row], and back.
    void (*to_columns)(const std::int8_t* in, layout::Rows rows, std::int8_t* out);
    void (*to_rows)(const std::int8_t* in, layout::Rows rows, std::int8_t* out);

    // Each row times a square matrix (row-major, y[j] = sum of x[i] matrix[i][j]), summed in the order of i.
    void (*multiply)(const float* x, layout::Rows rows, const float* matrix, float* y);
};

struct Planes {
    // The exponents of bfloat16 values.
    void (*exponents)(const std::byte* in, std::size_t count, std::uint8_t* out);
};

// The stream coder (stream.hpp): the same steps of up to rans::max_together streams, interleaved to hide the latency of
// a step.
struct Rans {
    // Writes `steps` in front of what was written before. May read codes up to slack_bytes beyond their end.
    void (*encode)(const rans::Steps& steps, std::size_t streams, const std::uint8_t* const* codes,
                   rans::Encoder* const* encoders);
    // Returns false if the bytes of a stream ran out. May write codes up to slack_bytes beyond their end.
    bool (*decode)(const rans::Steps& steps, std::size_t streams, rans::Decoder* const* decoders,
                   std::uint8_t* const* codes);
    // The same for rows with one table whose symbols are the exponents of bfloat16 values; the other bits of each value
    // (sign as the highest bit, mantissa) are a byte of `others`. Nothing is read or written beyond the ends.
    void (*encode_values)(const rans::Steps& steps, std::size_t streams, const std::byte* const* values,
                          std::uint8_t* const* others, rans::Encoder* const* encoders);
    bool (*decode_values)(const rans::Steps& steps, std::size_t streams, rans::Decoder* const* decoders,
                          const std::uint8_t* const* others, std::byte* const* values);
};

// CRC-32C of the raw register; crc32c() inverts it before and after.
struct Checksum {
    std::uint32_t (*update)(std::uint32_t crc, const std::byte* bytes, std::size_t count);
};

struct Kernels {
    Isa isa;
    const Convert* convert;
    const Groups* groups;
    const Select* select;
    const Channels* channels;
    const Planes* planes;
    const Rans* rans;
    const Checksum* checksum;
};

namespace scalar {
extern const Convert convert;
extern const Groups groups;
extern const Select select;
extern const Channels channels;
extern const Planes planes;
extern const Rans rans;
extern const Checksum checksum;
}  // namespace scalar

namespace avx2 {
extern const Convert convert;
extern const Groups groups;
extern const Select select;
extern const Channels channels;
extern const Planes planes;
extern const Rans rans;
extern const Checksum checksum;
}  // namespace avx2

namespace avx512 {
extern const Convert convert;
extern const Groups groups;
extern const Select select;
extern const Planes planes;
extern const Rans rans;
extern const Checksum checksum;
extern const Channels channels;
}  // namespace avx512

namespace neon {
extern const Convert convert;
extern const Groups groups;
extern const Select select;
extern const Channels channels;
extern const Planes planes;
extern const Rans rans;
extern const Checksum checksum;
}  // namespace neon

}  // namespace orbitsplit::kernels
