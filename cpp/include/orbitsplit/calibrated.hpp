// Calibrated codecs: the parameters that calibration found for one level at one cut of a model, applied to activations.
//
// With x a row of an activation, its last axis as wide as the codec has channels:
//
//     y    = T ((x - shift) scale)                        T: identity, blockwise Hadamard or a matrix
//     code = 0                                            where |y| < threshold, else
//            sign(y) floor(|y| / step + rounding)         if that is within -127..127, else
//            -128, an escape: y itself is stored as a bfloat16, so that nothing is ever clipped
//     y'   = sign(code) (|code| - shrink) step            or the bfloat16
//     x'   = (T^t y') / scale + shift                     or with the codec's own inverse of T
//
// Codes are stored as bytes, or entropy-coded by static tables. A frame names the codebook, cut and level it needs and
// contains none of the parameters above: its reader must have the same codec. NaN and infinity are rejected.
//
// Fitting parameters to data is calibration, which is not part of the core.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "orbitsplit/codec.hpp"
#include "orbitsplit/error.hpp"
#include "orbitsplit/export.hpp"
#include "orbitsplit/frame.hpp"

namespace orbitsplit {

// The expected frequency of each byte in 256ths. They add up to 1 to 255; the remainder of 256 is for bytes of
// frequency 0, which are escaped.
using SymbolFrequencies = std::array<std::uint8_t, 256>;

// The frequencies that code bytes with these counts in the fewest bits, by the integer rule of docs/internals/frame_format.md. If
// all counts are 0, those for bytes that are all 0. Throws std::invalid_argument if the counts add up to 2^40 or more.
ORBITSPLIT_API SymbolFrequencies table_from_counts(std::span<const std::uint64_t, 256> counts);

// The inverse of a matrix (width x width, row-major) for CalibratedParameters, by Gauss-Jordan elimination with partial
// pivoting in float64: the same numbers on every processor, so a codebook may leave an inverse out. Takes width^3
// operations. Throws std::invalid_argument for another size, and for a matrix without an inverse in float32.
ORBITSPLIT_API std::vector<float> inverse_of(std::span<const float> matrix, std::size_t width);

// Vectors have one number for each channel unless stated otherwise.
struct CalibratedParameters {
    CodebookKey key;
    std::vector<float> step;   // from 2^-126 to 2^120; its size is the width
    std::vector<float> shift;  // from -2^126 to 2^126; none: 0
    std::vector<float> scale;  // from 2^-120 to 2^120, with a transform only (else it is in step); none: 1
    std::vector<float> threshold;  // finite, at least 0; none: 0
    float rounding = 0.5F;         // in (0, 0.5]: below one half the zone that codes 0 is wider than a step
    float shrink = 0.0F;           // in [0, 0.5)
    std::int32_t hadamard = 0;     // size of the blocks, a power of two that divides the width; 0: none
    std::vector<float> matrix;     // width x width, row-major; none: identity (or Hadamard)
    std::vector<float> inverse;    // of the matrix, both from -2^40 to 2^40; none: `matrix` is orthogonal
    std::vector<SymbolFrequencies> tables;       // none: codes are stored as bytes
    std::vector<std::uint8_t> table_of_channel;  // indices into `tables`
};

class CalibratedCodec;

// For our own sources only.
namespace calibrated {
struct Prepared;
const Prepared& prepared(const CalibratedCodec& codec);
}  // namespace calibrated

// Validated parameters and what is derived from them once. Immutable: threads may share it. An object that was moved
// from can only be assigned to or destroyed.
class ORBITSPLIT_API CalibratedCodec {
  public:
    // Throws std::invalid_argument that names the parameter, its value and what is valid.
    explicit CalibratedCodec(CalibratedParameters parameters);
    ~CalibratedCodec();
    CalibratedCodec(CalibratedCodec&&) noexcept;
    CalibratedCodec& operator=(CalibratedCodec&&) noexcept;

    const CalibratedParameters& parameters() const;
    std::size_t width() const { return parameters().step.size(); }

  private:
    friend const calibrated::Prepared& calibrated::prepared(const CalibratedCodec& codec);

    std::unique_ptr<const calibrated::Prepared> prepared_;
};

// An upper bound on the size of the frame in bytes.
ORBITSPLIT_API std::uint64_t frame_bytes(DType dtype, std::span<const std::int64_t> shape,
                                         const CalibratedCodec& codec);

// As compress() and decompress() of codec.hpp, on up to execution.threads threads; the frame does not depend on
// them. They also throw std::invalid_argument for a shape whose last axis is not the codec's width, and
// CorruptFrameError for a frame that was encoded with another codec.
ORBITSPLIT_API std::vector<std::byte> compress(std::span<const std::byte> data, DType dtype,
                                               std::span<const std::int64_t> shape,
                                               const CalibratedCodec& codec, const Execution& execution = {});
ORBITSPLIT_API std::size_t compress_into(std::span<std::byte> frame, std::span<const std::byte> data,
                                         DType dtype, std::span<const std::int64_t> shape,
                                         const CalibratedCodec& codec, const Execution& execution = {});
ORBITSPLIT_API Decoded decompress(std::span<const std::byte> frame, const CalibratedCodec& codec,
                                  const Limits& limits = {}, const Execution& execution = {});
ORBITSPLIT_API void decompress_into(std::span<std::byte> data, std::span<const std::byte> frame,
                                    const CalibratedCodec& codec, const Limits& limits = {},
                                    const Execution& execution = {});
ORBITSPLIT_API void decompress_into(std::span<std::byte> data, DType dtype,
                                    std::span<const std::int64_t> shape, std::span<const std::byte> frame,
                                    const CalibratedCodec& codec, const Execution& execution = {});

}  // namespace orbitsplit
