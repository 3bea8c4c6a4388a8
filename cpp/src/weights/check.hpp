// What all calls on quantised weights check.
#pragma once

#include <cstddef>
#include <cstdint>

#include "orbitsplit/weights.hpp"
#include "weights/layout.hpp"

namespace orbitsplit::weights {

// The bytes of one row.
std::size_t row_bytes(WeightFormat format, std::size_t groups);

// Throws std::invalid_argument unless they are equal: "x has 3 values, the shape needs 64".
void check_size(const char* what, std::uint64_t found, const char* unit, std::uint64_t needed);

}  // namespace orbitsplit::weights
