// How the rows of a calibrated frame are cut into streams (docs/internals/frame_format.md), and how threads share them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/calibrated/calibrated.hpp"
#include "codec/kernels/rows.hpp"

namespace orbitsplit::calibrated {

using layout::Rows;

// For all streams but the last: bytes of the coded codes and number of escapes. The last has the rest, and its
// escapes are the header's parameter, so that a decode step pays for no directory.
struct StreamSize {
    std::uint32_t coded_bytes;
    std::uint32_t escapes;

    std::size_t bytes() const { return coded_bytes + std::size_t{2} * escapes; }
};

std::size_t streams_of(Rows rows);
Rows rows_of_stream(Rows rows, std::size_t index);
std::size_t directory_bytes(Rows rows);

// Bytes at most: of coded codes, of a stream, of a payload.
std::size_t coded_bound(const CalibratedCodec::Prepared& codec, Rows rows);
std::size_t stream_bound(const CalibratedCodec::Prepared& codec, Rows rows);
std::uint64_t payload_bound(const CalibratedCodec::Prepared& codec, Rows rows);

// The streams that fall to part `part` of `parts`, of which there are at most as many as threads or streams.
struct StreamRange {
    std::size_t begin;
    std::size_t end;
};

StreamRange range_of(std::size_t streams, std::size_t part, std::size_t parts);
std::size_t parts_of(std::size_t streams, int threads);

}  // namespace orbitsplit::calibrated
