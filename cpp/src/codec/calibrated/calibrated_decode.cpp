#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "codec/calibrated/calibrated_payload.hpp"
#include "codec/calibrated/calibrated_rows.hpp"
#include "codec/calibrated/calibrated_scratch.hpp"
#include "codec/calibrated/calibrated_streams.hpp"
#include "codec/frame/layout.hpp"
#include "codec/kernels/dispatch.hpp"
#include "support/pool.hpp"

namespace orbitsplit::calibrated {

namespace {

// A stream of a frame: its codes and values, and the elements that it encodes.
struct StreamView {
    Rows rows;
    std::byte* data;
    std::span<const std::byte> coded;
    std::size_t readable;  // bytes from the beginning of `coded` to the end of the frame
    std::span<const std::byte> values;
};

// Decodes the streams of one frame. Throws CorruptFrameError.
class StreamDecoder {
  public:
    StreamDecoder(const Prepared& codec, DType dtype, Rows largest, const Execution& execution, Arena& memory)
        : codec_(codec), dtype_(dtype), execution_(execution), memory_(memory) {
        const std::size_t floats = scratch_floats(codec, dtype, largest);
        floats_ = floats > 0 ? memory.take<float>(floats) : nullptr;
        if (!codec.tables) return;
        for (auto* codes : {&codes_, &columns_[0], &columns_[1]})
            *codes = memory.take<std::int8_t>(group_codes(largest));
    }

    void decode(StreamView view) {
        if (codec_.tables) {
            stream::Decoder decoder = open(view);
            for (std::size_t group = 0; view.rows.count > 0; ++group) {
                decoder.next_group(group, coded(columns_[0]));
                store_group(columns_[0], view);
            }
            decoder.finish();
        } else {
            store(reinterpret_cast<const std::int8_t*>(view.coded.data()), view.rows, view);
        }
        check_consumed(view);
    }

    // Two streams of equally many rows, which the kernels decode faster interleaved.
    void decode_two(StreamView first, StreamView second) {
        stream::Decoder one = open(first);
        stream::Decoder two = open(second);
        stream::Decoder* const streams[] = {&one, &two};
        std::uint8_t* const codes[] = {coded(columns_[0]), coded(columns_[1])};
        for (std::size_t group = 0; first.rows.count > 0; ++group) {
            stream::Decoder::next_group(group, streams, codes);
            store_group(columns_[0], first);
            store_group(columns_[1], second);
        }
        one.finish();
        two.finish();
        check_consumed(first);
        check_consumed(second);
    }

  private:
    static std::uint8_t* coded(std::int8_t* codes) { return reinterpret_cast<std::uint8_t*>(codes); }

    stream::Decoder open(const StreamView& view) const {
        return {*codec_.tables, view.coded, view.readable, view.rows.count, view.rows.length, memory_};
    }

    // Decodes the next rows of a stream and advances its values and data.
    void store(const std::int8_t* codes, Rows rows, StreamView& view) {
        const std::size_t used =
            dequantise_rows(codec_, codes, rows, view.values.data(), view.values.size() / 2, dtype_,
                            view.data, floats_, execution_);
        if (used == kernels::not_finite)
            throw CorruptFrameError("frame has escapes without a value or with one that is not finite");
        view.values = view.values.subspan(2 * used);
        view.data += rows.count * rows.length * item_bytes(dtype_);
        view.rows.count -= rows.count;
    }

    void store_group(const std::int8_t* columns, StreamView& view) {
        const Rows rows{std::min(view.rows.count, stream::group_rows), view.rows.length};
        if (rows.count > 1) kernels::active().channels->to_rows(columns, rows, codes_);
        store(rows.count > 1 ? codes_ : columns, rows, view);
    }

    static void check_consumed(const StreamView& view) {
        if (!view.values.empty())
            throw CorruptFrameError("frame has " + std::to_string(view.values.size() / 2) +
                                    " values more than escapes");
    }

    const Prepared& codec_;
    DType dtype_;
    const Execution& execution_;
    Arena& memory_;
    float* floats_ = nullptr;
    std::int8_t* codes_ = nullptr;
    std::int8_t* columns_[2] = {};
};

[[noreturn]] void refuse_payload(std::uint64_t present, std::uint64_t needed) {
    throw CorruptFrameError("frame has a payload of " + std::to_string(present) +
                            " bytes, its streams need " + std::to_string(needed));
}

// Locates the streams of a frame by its directory and checks that they use every byte of the payload.
class Streams {
  public:
    Streams(const Prepared& codec, const FrameInfo& info, std::span<const std::byte> payload, std::byte* data)
        : codec_(codec),
          info_(info),
          rows_(layout::rows_of(info.shape)),
          payload_(payload),
          data_(data),
          at_(directory_bytes(rows_)) {
        if (payload.size() < at_) refuse_payload(payload.size(), at_);
        if (streams_of(rows_) == 0 && (info.parameter != 0 || !payload.empty()))
            refuse_payload(payload.size(), 0);
    }

    std::size_t left() const { return streams_of(rows_) - index_; }

    StreamView next() {
        const Rows rows = rows_of_stream(rows_, index_);
        const std::span<const std::byte> bytes = payload_.subspan(at_);
        const StreamSize size = next_size(bytes.size());
        if (size.bytes() > bytes.size()) refuse_payload(payload_.size(), at_ + size.bytes());
        if (!codec_.tables && size.coded_bytes != rows.count * rows.length)
            throw CorruptFrameError("frame has a stream of " + std::to_string(size.coded_bytes) +
                                    " codes, its rows need " + std::to_string(rows.count * rows.length));
        std::byte* data = data_ + index_ * stream::max_rows * rows.length * item_bytes(info_.dtype);
        ++index_;
        at_ += size.bytes();
        return {.rows = rows,
                .data = data,
                .coded = bytes.first(size.coded_bytes),
                .readable = bytes.size(),
                .values = bytes.subspan(size.coded_bytes, std::size_t{2} * size.escapes)};
    }

  private:
    StreamSize next_size(std::size_t present) const {
        StreamSize size{.coded_bytes = 0, .escapes = info_.parameter};
        if (left() > 1)
            std::memcpy(&size, payload_.data() + index_ * sizeof size, sizeof size);
        else if (present < size.bytes())
            refuse_payload(payload_.size(), at_ + size.bytes());
        else
            size.coded_bytes = static_cast<std::uint32_t>(present - size.bytes());
        return size;
    }

    const Prepared& codec_;
    const FrameInfo& info_;
    Rows rows_;
    std::span<const std::byte> payload_;
    std::byte* data_;
    std::size_t at_;
    std::size_t index_ = 0;
};

void decode_range(const Prepared& codec, DType dtype, std::span<const StreamView> views,
                  const Execution& execution, Workspace& workspace) {
    Workspace::Part memory(workspace);
    StreamDecoder decoder(codec, dtype, views.front().rows, execution, memory.arena());
    while (!views.empty()) {
        const bool is_pair = codec.tables && views.size() > 1 && views[0].rows.count == views[1].rows.count;
        if (is_pair)
            decoder.decode_two(views[0], views[1]);
        else
            decoder.decode(views[0]);
        views = views.subspan(is_pair ? 2 : 1);
    }
}

}  // namespace

WorkspaceSize decode_memory(const Prepared& codec, DType dtype, Rows rows) {
    const std::size_t streams = streams_of(rows);
    if (streams == 0) return {};
    const Rows largest = rows_of_stream(rows, 0);
    const std::size_t copies = codec.tables ? stream::Decoder::memory_bytes(coded_bound(codec, largest)) : 0;
    return {.call = Arena::padded(streams * sizeof(StreamView)),
            .part = scratch_bytes(codec, dtype, largest, 3) + copies};
}

void decode_payload(const Prepared& codec, const FrameInfo& info, std::span<const std::byte> payload,
                    std::byte* data, const Execution& execution, Workspace& workspace) {
    Streams streams(codec, info, payload, data);
    const std::size_t count = streams.left();
    auto* located = workspace.call().take<StreamView>(count);
    for (std::size_t k = 0; k < count; ++k) std::construct_at(located + k, streams.next());
    const std::span<const StreamView> views(located, count);
    // More parts than threads, because other programs may delay a thread.
    const std::size_t parts = parts_of(count, execution.threads == 1 ? 1 : 4 * execution.threads);
    pool::run_parts(parts, execution.threads, [&](std::size_t part) {
        const StreamRange range = range_of(count, part, parts);
        decode_range(codec, info.dtype, views.subspan(range.begin, range.end - range.begin), execution,
                     workspace);
    });
}

}  // namespace orbitsplit::calibrated
