// Rows of an activation to the codes of a calibrated codec and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/calibrated/calibrated.hpp"
#include "codec/kernels/kernels.hpp"
#include "orbitsplit/execution.hpp"
#include "orbitsplit/frame.hpp"

namespace orbitsplit::calibrated {

// Rows that are transformed as one block, so that they stay in the cache: a multiple of the rows that the kernels
// multiply by a matrix at once.
inline constexpr std::size_t block_rows = 24;

// Floats of scratch memory for some rows; 0 if the kernels work on the array itself.
std::size_t scratch_floats(const Prepared& codec, DType dtype, layout::Rows rows);

// Writes a code for each element, and to `values` those of escapes. Returns their number, or kernels::not_finite if an
// element was not finite or the transform exceeded the range of float32.
std::size_t quantise_rows(const Prepared& codec, const std::byte* in, DType dtype, layout::Rows rows,
                          std::int8_t* codes, std::byte* values, float* scratch, const Execution& execution);

// The reverse. Returns how many of `count` values were used, or kernels::not_finite if there are too few or one is not
// finite.
std::size_t dequantise_rows(const Prepared& codec, const std::int8_t* codes, layout::Rows rows,
                            const std::byte* values, std::size_t count, DType dtype, std::byte* out,
                            float* scratch, const Execution& execution);

}  // namespace orbitsplit::calibrated
