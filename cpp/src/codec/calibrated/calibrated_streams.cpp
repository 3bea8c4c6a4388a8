#include "codec/calibrated/calibrated_streams.hpp"

#include <algorithm>

#include "codec/entropy/stream.hpp"

namespace orbitsplit::calibrated {

std::size_t streams_of(Rows rows) { return (rows.count + stream::max_rows - 1) / stream::max_rows; }

Rows rows_of_stream(Rows rows, std::size_t index) {
    return {std::min(stream::max_rows, rows.count - index * stream::max_rows), rows.length};
}

std::size_t directory_bytes(Rows rows) {
    const std::size_t streams = streams_of(rows);
    return streams > 0 ? (streams - 1) * sizeof(StreamSize) : 0;
}

std::size_t coded_bound(const Prepared& codec, Rows rows) {
    return codec.tables ? stream::bound(rows.count, rows.length) : rows.count * rows.length;
}

std::size_t stream_bound(const Prepared& codec, Rows rows) {
    return coded_bound(codec, rows) + 2 * rows.count * rows.length;
}

std::uint64_t payload_bound(const Prepared& codec, Rows rows) {
    const std::size_t streams = streams_of(rows);
    if (streams == 0) return 0;
    return directory_bytes(rows) + (streams - 1) * stream_bound(codec, {stream::max_rows, rows.length}) +
           stream_bound(codec, rows_of_stream(rows, streams - 1));
}

StreamRange range_of(std::size_t streams, std::size_t part, std::size_t parts) {
    return {streams * part / parts, streams * (part + 1) / parts};
}

std::size_t parts_of(std::size_t streams, int threads) {
    return std::min(streams, static_cast<std::size_t>(threads));
}

}  // namespace orbitsplit::calibrated
