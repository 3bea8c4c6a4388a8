// Rows of an activation to the codes of a calibrated codec and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/calibrated/calibrated.hpp"
#include "codec/kernels/kernels.hpp"
#include "orbitsplit/frame.hpp"

namespace orbitsplit::calibrated {

// Rows that pass through a transform together, so that they stay in the cache: a multiple of those that the kernels
// multiply by a matrix together.
inline constexpr std::size_t block_rows = 24;

// Numbers of scratch space that some rows need; 0 where the kernels read and write the array itself.
std::size_t scratch_floats(const CalibratedCodec::Prepared& codec, DType dtype, layout::Rows rows);

// Writes a code for each element and the values of escapes, for which `values` has room. Returns their number,
// or kernels::not_finite if an element was not finite or left the range of float32 in the transform.
std::size_t quantise_rows(const CalibratedCodec::Prepared& codec, const std::byte* in, DType dtype,
                          layout::Rows rows, std::int8_t* codes, std::byte* values, float* scratch);

// The reverse. Returns how many of `count` values were used, or kernels::not_finite if they did not suffice or
// one is not finite.
std::size_t dequantise_rows(const CalibratedCodec::Prepared& codec, const std::int8_t* codes,
                            layout::Rows rows, const std::byte* values, std::size_t count, DType dtype,
                            std::byte* out, float* scratch);

}  // namespace orbitsplit::calibrated
