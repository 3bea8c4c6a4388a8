#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "codec/calibrated/calibrated_payload.hpp"
#include "codec/calibrated/calibrated_rows.hpp"
#include "codec/calibrated/calibrated_scratch.hpp"
#include "codec/calibrated/calibrated_streams.hpp"
#include "codec/frame/encoding.hpp"
#include "codec/frame/layout.hpp"
#include "codec/kernels/dispatch.hpp"
#include "support/pool.hpp"

namespace orbitsplit::calibrated {

namespace {

// Encodes the streams of one frame, one after another.
class StreamEncoder {
  public:
    StreamEncoder(const Prepared& codec, DType dtype, Rows largest, const Execution& execution, Arena& memory)
        : codec_(codec), dtype_(dtype), execution_(execution) {
        const std::size_t floats = scratch_floats(codec, dtype, largest);
        floats_ = floats > 0 ? memory.take<float>(floats) : nullptr;
        if (!codec.tables) return;
        codes_ = memory.take<std::int8_t>(group_codes(largest));
        columns_ = memory.take<std::int8_t>(group_codes(largest));
        coder_.emplace(*codec.tables, largest.count, largest.length, memory);
    }

    // Writes a stream; `out` has room for its bound. Returns nothing if a number was not finite.
    std::optional<StreamSize> encode(const std::byte* in, Rows rows, std::byte* out) {
        if (codec_.tables) return encode_coded(in, rows, out);
        const std::size_t coded_bytes = rows.count * rows.length;
        const std::size_t escapes =
            quantise_rows(codec_, in, dtype_, rows, reinterpret_cast<std::int8_t*>(out), out + coded_bytes,
                          floats_, execution_);
        if (escapes == kernels::not_finite) return std::nullopt;
        return StreamSize{static_cast<std::uint32_t>(coded_bytes), static_cast<std::uint32_t>(escapes)};
    }

  private:
    // Groups are quantised in the order of coding, last group first, so that codes stay in the L1 cache. The values of
    // each group are kept at the offset that they would have if every code before them were an escape.
    std::optional<StreamSize> encode_coded(const std::byte* in, Rows rows, std::byte* out) {
        std::byte* values = out + coded_bound(codec_, rows);
        std::size_t escapes[stream::max_rows / stream::group_rows] = {};
        coder_->start(rows.count, rows.length);
        const std::size_t groups = (rows.count + stream::group_rows - 1) / stream::group_rows;
        for (std::size_t group = groups; group-- > 0;) {
            const Rows here{stream::rows_of_group(rows.count, group), rows.length};
            const std::size_t first = group * stream::group_rows * rows.length;
            escapes[group] = quantise_rows(codec_, in + first * item_bytes(dtype_), dtype_, here, codes_,
                                           values + 2 * first, floats_, execution_);
            if (escapes[group] == kernels::not_finite) return std::nullopt;
            if (here.count > 1) kernels::active().channels->to_columns(codes_, here, columns_);
            coder_->add_group(group,
                              reinterpret_cast<const std::uint8_t*>(here.count > 1 ? columns_ : codes_));
        }
        const std::size_t coded_bytes = coder_->size();
        coder_->finish(out);
        std::byte* end = out + coded_bytes;
        for (std::size_t group = 0; group < groups; ++group) {
            std::memmove(end, values + 2 * group * stream::group_rows * rows.length, 2 * escapes[group]);
            end += 2 * escapes[group];
        }
        return StreamSize{
            static_cast<std::uint32_t>(coded_bytes),
            static_cast<std::uint32_t>((static_cast<std::size_t>(end - out) - coded_bytes) / 2)};
    }

    const Prepared& codec_;
    DType dtype_;
    const Execution& execution_;
    float* floats_ = nullptr;
    std::int8_t* codes_ = nullptr;
    std::int8_t* columns_ = nullptr;
    std::optional<stream::Encoder> coder_;
};

[[noreturn]] void refuse_range(const std::byte* data, const FrameInfo& info) {
    encoding::refuse_non_finite(data, info, "a calibrated codec");
    throw std::invalid_argument("an element leaves the range of float32 when it is shifted and transformed");
}

// Encodes a range of streams back to back and returns their end. `sizes` has an entry for each stream of the frame.
std::byte* encode_range(const Prepared& codec, const std::byte* data, const FrameInfo& info,
                        StreamRange range, StreamSize* sizes, std::byte* out, const Execution& execution,
                        Workspace& workspace) {
    const Rows rows = layout::rows_of(info.shape);
    Workspace::Part memory(workspace);
    StreamEncoder encoder(codec, info.dtype, rows_of_stream(rows, range.begin), execution, memory.arena());
    const std::size_t stream_bytes = stream::max_rows * rows.length * item_bytes(info.dtype);
    for (std::size_t k = range.begin; k < range.end; ++k) {
        const auto size = encoder.encode(data + k * stream_bytes, rows_of_stream(rows, k), out);
        if (!size) refuse_range(data, info);
        sizes[k] = *size;
        out += size->bytes();
    }
    return out;
}

// Each thread writes at the offset that its streams would have if all before were at their bound; then the gaps are
// closed.
std::byte* encode_ranges(const Prepared& codec, const std::byte* data, const FrameInfo& info,
                         std::size_t parts, StreamSize* sizes, std::byte* out, const Execution& execution,
                         Workspace& workspace) {
    const Rows rows = layout::rows_of(info.shape);
    const std::size_t streams = streams_of(rows);
    const std::size_t bound = stream_bound(codec, rows_of_stream(rows, 0));
    const auto begin_of = [&](std::size_t part) {
        return out + range_of(streams, part, parts).begin * bound;
    };
    auto** ends = workspace.call().take<std::byte*>(parts);
    pool::run_parts(parts, static_cast<int>(parts), [&](std::size_t part) {
        ends[part] = encode_range(codec, data, info, range_of(streams, part, parts), sizes, begin_of(part),
                                  execution, workspace);
    });
    std::byte* end = ends[0];
    for (std::size_t part = 1; part < parts; ++part) {
        const auto bytes = static_cast<std::size_t>(ends[part] - begin_of(part));
        std::memmove(end, begin_of(part), bytes);
        end += bytes;
    }
    return end;
}

}  // namespace

WorkspaceSize encode_memory(const Prepared& codec, DType dtype, Rows rows, int threads) {
    const std::size_t streams = streams_of(rows);
    if (streams == 0) return {};
    const Rows largest = rows_of_stream(rows, 0);
    const std::size_t coder = codec.tables ? stream::Encoder::memory_bytes(largest.count, largest.length) : 0;
    return {.call = Arena::padded(streams * sizeof(StreamSize)) +
                    Arena::padded(parts_of(streams, threads) * sizeof(std::byte*)),
            .part = scratch_bytes(codec, dtype, largest, 2) + coder};
}

std::size_t encode_payload(const Prepared& codec, const std::byte* data, FrameInfo& info, std::byte* payload,
                           const Execution& execution, Workspace& workspace) {
    const Rows rows = layout::rows_of(info.shape);
    const std::size_t streams = streams_of(rows);
    if (streams == 0) return 0;
    auto* sizes = workspace.call().take<StreamSize>(streams);
    std::byte* out = payload + directory_bytes(rows);
    const std::size_t parts = parts_of(streams, execution.threads);
    const std::byte* end =
        parts > 1 ? encode_ranges(codec, data, info, parts, sizes, out, execution, workspace)
                  : encode_range(codec, data, info, {0, streams}, sizes, out, execution, workspace);
    if (streams > 1) std::memcpy(payload, sizes, directory_bytes(rows));
    info.parameter = sizes[streams - 1].escapes;
    return static_cast<std::size_t>(end - payload);
}

}  // namespace orbitsplit::calibrated
