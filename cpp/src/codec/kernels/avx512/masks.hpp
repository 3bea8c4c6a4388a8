// Masks of lanes.
#pragma once

#include <immintrin.h>

#include <cstddef>

namespace orbitsplit::kernels {

namespace {

inline __mmask64 first_lanes(std::size_t count) { return _bzhi_u64(~0ULL, static_cast<unsigned>(count)); }

inline std::size_t count_lanes(__mmask64 mask) { return static_cast<std::size_t>(_mm_popcnt_u64(mask)); }

}  // namespace

}  // namespace orbitsplit::kernels
