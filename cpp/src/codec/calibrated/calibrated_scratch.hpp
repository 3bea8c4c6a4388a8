// How much working memory the streams of a calibrated frame need.
#pragma once

#include <algorithm>
#include <cstddef>

#include "codec/calibrated/calibrated.hpp"
#include "codec/calibrated/calibrated_rows.hpp"
#include "codec/entropy/stream.hpp"
#include "support/workspace.hpp"

namespace orbitsplit::calibrated {

inline std::size_t group_codes(layout::Rows largest) {
    return std::min(largest.count, stream::group_rows) * largest.length;
}

// Bytes for streams of at most this size: numbers to transform, and the codes of a group in `copies` buffers.
inline std::size_t scratch_bytes(const Prepared& codec, DType dtype, layout::Rows largest,
                                 std::size_t copies) {
    const std::size_t floats = Arena::padded(sizeof(float) * scratch_floats(codec, dtype, largest));
    return floats + (codec.tables ? copies * Arena::padded(group_codes(largest)) : 0);
}

}  // namespace orbitsplit::calibrated
