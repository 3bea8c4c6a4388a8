// How the rows of a calibrated frame are divided into streams (docs/internals/frame_format.md) and among threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/calibrated/calibrated.hpp"
#include "codec/kernels/rows.hpp"

namespace orbitsplit::calibrated {

using layout::Rows;

// The directory entry of every stream but the last: bytes of the coded codes and number of escapes. The last stream has
// the remaining bytes and its escapes are the header's parameter, so that a decode step needs no directory.
struct StreamSize {
    std::uint32_t coded_bytes;
    std::uint32_t escapes;

    std::size_t bytes() const { return coded_bytes + std::size_t{2} * escapes; }
};

std::size_t streams_of(Rows rows);
Rows rows_of_stream(Rows rows, std::size_t index);
std::size_t directory_bytes(Rows rows);

// Upper bounds in bytes: of coded codes, of a stream, of a payload.
std::size_t coded_bound(const Prepared& codec, Rows rows);
std::size_t stream_bound(const Prepared& codec, Rows rows);
std::uint64_t payload_bound(const Prepared& codec, Rows rows);

// The streams of part `part` out of `parts`. parts_of() is at most the number of threads and of streams.
struct StreamRange {
    std::size_t begin;
    std::size_t end;
};

StreamRange range_of(std::size_t streams, std::size_t part, std::size_t parts);
std::size_t parts_of(std::size_t streams, int threads);

}  // namespace orbitsplit::calibrated
