#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "codec/calibrated/calibrated_payload.hpp"
#include "codec/calibrated/calibrated_rows.hpp"
#include "codec/calibrated/calibrated_scratch.hpp"
#include "codec/calibrated/calibrated_streams.hpp"
#include "codec/frame/layout.hpp"
#include "codec/kernels/dispatch.hpp"
#include "support/pool.hpp"

namespace orbitsplit::calibrated {

namespace {

using Prepared = CalibratedCodec::Prepared;

// A stream of a frame: its codes and values, and the elements it stands for.
struct StreamPlace {
    Rows rows;
    std::byte* data;
    std::span<const std::byte> coded;
    std::size_t readable;  // bytes from the beginning of `coded` to the end of the frame
    std::span<const std::byte> values;
};

// Decodes the streams of one frame. Throws CorruptFrameError.
class StreamDecoder {
  public:
    StreamDecoder(const Prepared& codec, DType dtype, Rows largest)
        : codec_(codec), dtype_(dtype), scratch_(scratch_bytes(codec, dtype, largest, 3)) {
        const std::size_t floats = scratch_floats(codec, dtype, largest);
        floats_ = floats > 0 ? scratch_.take<float>(floats) : nullptr;
        if (!codec.tables) return;
        for (auto* codes : {&codes_, &columns_[0], &columns_[1]})
            *codes = scratch_.take<std::int8_t>(group_codes(largest));
    }

    void decode(StreamPlace place) {
        if (codec_.tables) {
            stream::Decoder decoder = open(place);
            for (std::size_t group = 0; place.rows.count > 0; ++group) {
                decoder.next_group(group, coded(columns_[0]));
                store_group(columns_[0], place);
            }
            decoder.finish();
        } else {
            store(reinterpret_cast<const std::int8_t*>(place.coded.data()), place.rows, place);
        }
        check_spent(place);
    }

    // Two of the same rows, which the kernels decode faster side by side.
    void decode_two(StreamPlace first, StreamPlace second) {
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
        check_spent(first);
        check_spent(second);
    }

  private:
    static std::uint8_t* coded(std::int8_t* codes) { return reinterpret_cast<std::uint8_t*>(codes); }

    stream::Decoder open(const StreamPlace& place) const {
        return {*codec_.tables, place.coded, place.readable, place.rows.count, place.rows.length};
    }

    // Takes the first rows off what is left of a stream: their values and their place in the array.
    void store(const std::int8_t* codes, Rows rows, StreamPlace& place) {
        const std::size_t used = dequantise_rows(codec_, codes, rows, place.values.data(),
                                                 place.values.size() / 2, dtype_, place.data, floats_);
        if (used == kernels::not_finite)
            throw CorruptFrameError("frame has escapes without a value or with one that is not finite");
        place.values = place.values.subspan(2 * used);
        place.data += rows.count * rows.length * item_bytes(dtype_);
        place.rows.count -= rows.count;
    }

    void store_group(const std::int8_t* columns, StreamPlace& place) {
        const Rows rows{std::min(place.rows.count, stream::group_rows), place.rows.length};
        if (rows.count > 1) kernels::active().channels->to_rows(columns, rows, codes_);
        store(rows.count > 1 ? codes_ : columns, rows, place);
    }

    static void check_spent(const StreamPlace& place) {
        if (!place.values.empty())
            throw CorruptFrameError("frame has " + std::to_string(place.values.size() / 2) +
                                    " values more than escapes");
    }

    const Prepared& codec_;
    DType dtype_;
    Scratch scratch_;
    float* floats_ = nullptr;
    std::int8_t* codes_ = nullptr;
    std::int8_t* columns_[2] = {};
};

[[noreturn]] void refuse_payload(std::uint64_t present, std::uint64_t needed) {
    throw CorruptFrameError("frame has a payload of " + std::to_string(present) +
                            " bytes, its streams need " + std::to_string(needed));
}

// Where the streams of a frame lie, from its directory, with every byte of the payload in one of them.
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

    StreamPlace next() {
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

void decode_range(const Prepared& codec, DType dtype, std::span<const StreamPlace> places) {
    StreamDecoder decoder(codec, dtype, places.front().rows);
    while (!places.empty()) {
        const bool is_pair =
            codec.tables && places.size() > 1 && places[0].rows.count == places[1].rows.count;
        if (is_pair)
            decoder.decode_two(places[0], places[1]);
        else
            decoder.decode(places[0]);
        places = places.subspan(is_pair ? 2 : 1);
    }
}

}  // namespace

void decode_payload(const Prepared& codec, const FrameInfo& info, std::span<const std::byte> payload,
                    std::byte* data, int threads) {
    Streams streams(codec, info, payload, data);
    std::vector<StreamPlace> places;
    places.reserve(streams.left());
    while (streams.left() > 0) places.push_back(streams.next());
    // More parts than threads, because other programs may hold a thread up.
    const std::size_t parts = parts_of(places.size(), threads == 1 ? 1 : 4 * threads);
    pool::run_parts(parts, threads, [&](std::size_t part) {
        const StreamRange range = range_of(places.size(), part, parts);
        decode_range(codec, info.dtype, std::span(places).subspan(range.begin, range.end - range.begin));
    });
}

}  // namespace orbitsplit::calibrated
