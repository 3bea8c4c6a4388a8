// Codecs: encode an activation into a frame and decode it again.
//
// An activation is a dense row-major array of float32, float16 or bfloat16; its rows run along the last axis.
// With x an element, x' its decoded value:
//
//     raw    the bytes unchanged                                         x' = x, bit for bit
//     bf16   nearest bfloat16, ties to even                              |x - x'| <= 2^-8 |x| + 2^-134
//     lossless_bf16   as bf16, exponents entropy-coded                   as bf16; bfloat16 bit for bit
//     int8   groups of a row share a scale s, codes -127..127            |x - x'| <= s (1/2 + 2^-15)
//     int4   the same with codes -7..7                                   |x - x'| <= s (1/2 + 2^-15)
//     topk   the k largest magnitudes of each row, the rest zero         kept: as bf16 (16-bit dtypes: exact)
//
// s = bf16_up(max(m / 127, 2^-126)) with m the largest magnitude of the group (int4: m / 7); bf16_up rounds up, so that
// nothing is ever clipped. Decoding to float16 or bfloat16 rounds once more to that dtype, but never beyond its largest
// finite value. raw, bf16 and lossless_bf16 keep NaN and infinity; bf16 of a float32 beyond 3.396e38 is infinite, as in
// IEEE 754. The other codecs reject NaN and infinity, which can be neither scaled nor ranked.
//
// Frames are byte-identical on every machine: no fused multiply-add, a fixed order of operations, ties to even.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "orbitsplit/error.hpp"
#include "orbitsplit/execution.hpp"
#include "orbitsplit/export.hpp"
#include "orbitsplit/frame.hpp"

namespace orbitsplit {

struct Codec {
    CodecKind kind = CodecKind::raw;
    std::int32_t group = 64;  // int8, int4: elements that share a scale; a multiple of 8 from 8 to 65536
    double keep = 0.25;       // topk: fraction of each row that is kept, in (0, 1]
};

// Parses "raw", "bf16", "lossless_bf16", "int8", "int8:128", "int4", "int4:32", "topk" or "topk:0.1".
// Throws std::invalid_argument that lists the valid forms.
ORBITSPLIT_API Codec parse_codec(std::string_view text);

// Size of the frame in bytes; exact, except for topk and lossless_bf16, where it is an upper bound.
ORBITSPLIT_API std::uint64_t frame_bytes(DType dtype, std::span<const std::int64_t> shape,
                                         const Codec& codec);

// Large arrays are encoded and decoded on up to execution.threads threads by raw, bf16, int8 and int4 (topk and
// lossless_bf16 use one); the bytes do not depend on them. All throw StoppedError when stopped.

// Encodes row-major `data` of the given shape (at most max_rank axes; no axes: a scalar). Throws
// std::invalid_argument if the size of the data does not match the shape, the codec is invalid or cannot represent a
// value.
ORBITSPLIT_API std::vector<std::byte> compress(std::span<const std::byte> data, DType dtype,
                                               std::span<const std::int64_t> shape, const Codec& codec,
                                               const Execution& execution = {});

// The same into memory of the caller, at least frame_bytes() bytes that do not overlap the data. Returns the size of the
// frame.
ORBITSPLIT_API std::size_t compress_into(std::span<std::byte> frame, std::span<const std::byte> data,
                                         DType dtype, std::span<const std::int64_t> shape, const Codec& codec,
                                         const Execution& execution = {});

struct Decoded {
    DType dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> data;
};

// Decodes untrusted bytes: returns an array, or throws CorruptFrameError before allocating more than
// limits.max_bytes.
ORBITSPLIT_API Decoded decompress(std::span<const std::byte> frame, const Limits& limits = {},
                                  const Execution& execution = {});

// The same into memory of the caller: exactly inspect(frame).data_bytes() bytes that do not overlap the frame. After an
// error its contents are unspecified.
ORBITSPLIT_API void decompress_into(std::span<std::byte> data, std::span<const std::byte> frame,
                                    const Limits& limits = {}, const Execution& execution = {});

// The same for a known dtype and shape. Throws std::invalid_argument for a frame of another dtype or shape.
ORBITSPLIT_API void decompress_into(std::span<std::byte> data, DType dtype,
                                    std::span<const std::int64_t> shape, std::span<const std::byte> frame,
                                    const Execution& execution = {});

// The instruction set whose kernels run, and those that this processor and build support, slowest first: "scalar",
// "avx2", "avx512" or "neon". Frames and arrays do not depend on it. On first use the fastest is selected, or the one
// that the environment variable ORBITSPLIT_ISA names. isa() and set_isa() throw std::invalid_argument for a name that
// isas() does not list.
ORBITSPLIT_API std::string_view isa();
ORBITSPLIT_API std::vector<std::string> isas();
ORBITSPLIT_API void set_isa(std::string_view name);

}  // namespace orbitsplit
