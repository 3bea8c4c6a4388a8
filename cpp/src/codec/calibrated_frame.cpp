#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "codec/calibrated.hpp"
#include "codec/calibrated_rows.hpp"
#include "codec/dispatch.hpp"
#include "codec/encoding.hpp"
#include "codec/layout.hpp"
#include "codec/pool.hpp"

namespace orbitsplit {

namespace {

using layout::Rows;
using Prepared = CalibratedCodec::Prepared;

// For all streams but the last: bytes of the coded codes and number of escapes. The last has the rest, and its
// escapes are the header's parameter, so that a decode step pays for no directory.
struct StreamSize {
    std::uint32_t coded_bytes;
    std::uint32_t escapes;

    std::size_t bytes() const { return coded_bytes + std::size_t{2} * escapes; }
};

constexpr std::uint64_t most_elements = std::uint64_t{1} << 56;

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

// Memory for one stream after another: on the stack where a decode step fits, which then allocates none.
class Scratch {
  public:
    explicit Scratch(std::size_t bytes) : next_(near_) {
        if (bytes <= sizeof near_) return;
        far_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
        next_ = far_.get();
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    // Room for the kernels to read and write beyond the end, which they may by some bytes.
    static std::size_t padded(std::size_t bytes) { return (bytes + 127) / 64 * 64; }

    template <class T>
    T* take(std::size_t count) {
        auto* taken = reinterpret_cast<T*>(next_);
        next_ += padded(count * sizeof(T));
        return taken;
    }

  private:
    alignas(64) std::byte near_[std::size_t{96} << 10];
    std::unique_ptr<std::byte[]> far_;
    std::byte* next_;
};

std::size_t group_codes(Rows largest) { return std::min(largest.count, stream::group_rows) * largest.length; }

// What streams of at most this size need: numbers to transform, and codes of a group in so many places.
std::size_t scratch_bytes(const Prepared& codec, DType dtype, Rows largest, std::size_t places) {
    const std::size_t floats =
        Scratch::padded(sizeof(float) * calibrated::scratch_floats(codec, dtype, largest));
    return floats + (codec.tables ? places * Scratch::padded(group_codes(largest)) : 0);
}

// Encodes the streams of one frame, one after another.
class StreamEncoder {
  public:
    StreamEncoder(const Prepared& codec, DType dtype, Rows largest)
        : codec_(codec), dtype_(dtype), scratch_(scratch_bytes(codec, dtype, largest, 2)) {
        const std::size_t floats = calibrated::scratch_floats(codec, dtype, largest);
        floats_ = floats > 0 ? scratch_.take<float>(floats) : nullptr;
        if (!codec.tables) return;
        codes_ = scratch_.take<std::int8_t>(group_codes(largest));
        columns_ = scratch_.take<std::int8_t>(group_codes(largest));
        coder_.emplace(*codec.tables, largest.count, largest.length);
    }

    // Writes a stream, for which `out` has room at its bound. Nothing: a number was not finite.
    std::optional<StreamSize> encode(const std::byte* in, Rows rows, std::byte* out) {
        if (codec_.tables) return encode_coded(in, rows, out);
        const std::size_t coded_bytes = rows.count * rows.length;
        const std::size_t escapes = calibrated::quantise_rows(
            codec_, in, dtype_, rows, reinterpret_cast<std::int8_t*>(out), out + coded_bytes, floats_);
        if (escapes == kernels::not_finite) return std::nullopt;
        return StreamSize{static_cast<std::uint32_t>(coded_bytes), static_cast<std::uint32_t>(escapes)};
    }

  private:
    // Groups are quantised in the order they are coded in, the last first, so that codes stay in the nearest
    // cache; the values of each wait where they would lie if every code before them was an escape.
    std::optional<StreamSize> encode_coded(const std::byte* in, Rows rows, std::byte* out) {
        std::byte* values = out + coded_bound(codec_, rows);
        std::size_t escapes[stream::max_rows / stream::group_rows] = {};
        coder_->start(rows.count, rows.length);
        const std::size_t groups = (rows.count + stream::group_rows - 1) / stream::group_rows;
        for (std::size_t group = groups; group-- > 0;) {
            const Rows here{stream::rows_of_group(rows.count, group), rows.length};
            const std::size_t first = group * stream::group_rows * rows.length;
            escapes[group] = calibrated::quantise_rows(codec_, in + first * item_bytes(dtype_), dtype_, here,
                                                       codes_, values + 2 * first, floats_);
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
    Scratch scratch_;
    float* floats_ = nullptr;
    std::int8_t* codes_ = nullptr;
    std::int8_t* columns_ = nullptr;
    std::optional<stream::Encoder> coder_;
};

[[noreturn]] void refuse_range(const std::byte* data, const FrameInfo& info) {
    encoding::refuse_non_finite(data, info, "a calibrated codec");
    throw std::invalid_argument("an element leaves the range of float32 when it is shifted and transformed");
}

FrameInfo declare(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec) {
    FrameInfo info = encoding::declare(CodecKind::calibrated, dtype, shape);
    const Rows rows = layout::rows_of(info.shape);
    if (rows.length != codec.width())
        throw std::invalid_argument("rows have " + std::to_string(rows.length) + " elements, the codec has " +
                                    std::to_string(codec.width()) + " channels");
    // Above this the bound on the frame would not fit 64 bits; no array of this size exists.
    if (info.elements() > most_elements)
        throw std::invalid_argument("shape has " + std::to_string(info.elements()) +
                                    " elements, a calibrated frame holds at most " +
                                    std::to_string(most_elements));
    info.key = codec.parameters().key;
    info.payload_bytes = payload_bound(codec.prepared(), rows);
    return info;
}

// The streams that fall to part `part` of `parts` threads.
struct StreamRange {
    std::size_t begin;
    std::size_t end;
};

StreamRange range_of(std::size_t streams, std::size_t part, std::size_t parts) {
    return {streams * part / parts, streams * (part + 1) / parts};
}

// Encodes some streams one behind the other; returns their end. `sizes` has a place for each stream.
std::byte* encode_range(const Prepared& codec, const std::byte* data, const FrameInfo& info,
                        StreamRange range, StreamSize* sizes, std::byte* out) {
    const Rows rows = layout::rows_of(info.shape);
    StreamEncoder encoder(codec, info.dtype, rows_of_stream(rows, range.begin));
    const std::size_t stream_bytes = stream::max_rows * rows.length * item_bytes(info.dtype);
    for (std::size_t k = range.begin; k < range.end; ++k) {
        const auto size = encoder.encode(data + k * stream_bytes, rows_of_stream(rows, k), out);
        if (!size) refuse_range(data, info);
        sizes[k] = *size;
        out += size->bytes();
    }
    return out;
}

// Each thread writes where its streams would begin if all before were at their bound; then they are moved up.
std::byte* encode_ranges(const Prepared& codec, const std::byte* data, const FrameInfo& info,
                         std::size_t parts, StreamSize* sizes, std::byte* out) {
    const Rows rows = layout::rows_of(info.shape);
    const std::size_t streams = streams_of(rows);
    const std::size_t bound = stream_bound(codec, rows_of_stream(rows, 0));
    const auto begin_of = [&](std::size_t part) {
        return out + range_of(streams, part, parts).begin * bound;
    };
    std::vector<std::byte*> ends(parts);
    pool::run_parts(parts, static_cast<int>(parts), [&](std::size_t part) {
        ends[part] = encode_range(codec, data, info, range_of(streams, part, parts), sizes, begin_of(part));
    });
    std::byte* end = ends[0];
    for (std::size_t part = 1; part < parts; ++part) {
        const auto bytes = static_cast<std::size_t>(ends[part] - begin_of(part));
        std::memmove(end, begin_of(part), bytes);
        end += bytes;
    }
    return end;
}

std::size_t parts_of(std::size_t streams, int threads) {
    return std::min(streams, static_cast<std::size_t>(threads));
}

// Returns the size of the payload.
std::size_t encode_payload(const Prepared& codec, const std::byte* data, FrameInfo& info, std::byte* payload,
                           int threads) {
    const Rows rows = layout::rows_of(info.shape);
    const std::size_t streams = streams_of(rows);
    if (streams == 0) return 0;
    StreamSize only{};
    std::vector<StreamSize> several(streams > 1 ? streams : 0);
    StreamSize* sizes = streams > 1 ? several.data() : &only;
    std::byte* out = payload + directory_bytes(rows);
    const std::size_t parts = parts_of(streams, threads);
    const std::byte* end = parts > 1 ? encode_ranges(codec, data, info, parts, sizes, out)
                                     : encode_range(codec, data, info, {0, streams}, sizes, out);
    if (streams > 1) std::memcpy(payload, sizes, directory_bytes(rows));
    info.parameter = sizes[streams - 1].escapes;
    return static_cast<std::size_t>(end - payload);
}

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
        const std::size_t floats = calibrated::scratch_floats(codec, dtype, largest);
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
        const std::size_t used = calibrated::dequantise_rows(
            codec_, codes, rows, place.values.data(), place.values.size() / 2, dtype_, place.data, floats_);
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

// Reads the header; throws CorruptFrameError unless the frame was encoded with this codec.
FrameInfo inspect_for(const CalibratedCodec& codec, std::span<const std::byte> frame, const Limits& limits) {
    FrameInfo info = inspect(frame, limits);
    if (info.codec != CodecKind::calibrated) return info;
    if (info.key != codec.parameters().key)
        throw CorruptFrameError("frame needs " + layout::describe(info.key) + ", this codec is " +
                                layout::describe(codec.parameters().key));
    const Rows rows = layout::rows_of(info.shape);
    if (rows.length != codec.width())
        throw CorruptFrameError("frame has rows of " + std::to_string(rows.length) +
                                " elements, its codec has " + std::to_string(codec.width()) + " channels");
    return info;
}

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

void decode_inspected(const CalibratedCodec& codec, std::span<std::byte> data, const FrameInfo& info,
                      std::span<const std::byte> frame, int threads) {
    pool::check_threads(threads);
    if (info.codec != CodecKind::calibrated)
        return decompress_into(data, frame, {.max_bytes = info.data_bytes()}, threads);
    encoding::check_array(info, data.size());
    layout::verify_seal(frame);
    decode_payload(codec.prepared(), info, frame.subspan(info.header_bytes()), data.data(), threads);
}

}  // namespace

std::uint64_t frame_bytes(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec) {
    const FrameInfo info = declare(dtype, shape, codec);
    return info.header_bytes() + info.payload_bytes;
}

std::size_t compress_into(std::span<std::byte> frame, std::span<const std::byte> data, DType dtype,
                          std::span<const std::int64_t> shape, const CalibratedCodec& codec, int threads) {
    pool::check_threads(threads);
    FrameInfo info = declare(dtype, shape, codec);
    encoding::check_buffers(info, data.size(), frame.size());
    info.payload_bytes =
        encode_payload(codec.prepared(), data.data(), info, frame.data() + info.header_bytes(), threads);
    const std::size_t size = info.header_bytes() + info.payload_bytes;
    layout::write_header(frame, info);
    layout::seal(frame.first(size));
    return size;
}

std::vector<std::byte> compress(std::span<const std::byte> data, DType dtype,
                                std::span<const std::int64_t> shape, const CalibratedCodec& codec,
                                int threads) {
    std::vector<std::byte> frame(frame_bytes(dtype, shape, codec));
    frame.resize(compress_into(frame, data, dtype, shape, codec, threads));
    return frame;
}

void decompress_into(std::span<std::byte> data, std::span<const std::byte> frame,
                     const CalibratedCodec& codec, const Limits& limits, int threads) {
    decode_inspected(codec, data, inspect_for(codec, frame, limits), frame, threads);
}

void decompress_into(std::span<std::byte> data, DType dtype, std::span<const std::int64_t> shape,
                     std::span<const std::byte> frame, const CalibratedCodec& codec, int threads) {
    // Nothing is allocated, so any size may be declared: another shape is reported as that.
    const FrameInfo info =
        inspect_for(codec, frame, {.max_bytes = std::numeric_limits<std::uint64_t>::max()});
    encoding::check_array(info, dtype, shape);
    decode_inspected(codec, data, info, frame, threads);
}

Decoded decompress(std::span<const std::byte> frame, const CalibratedCodec& codec, const Limits& limits,
                   int threads) {
    const FrameInfo info = inspect_for(codec, frame, limits);
    Decoded decoded{
        .dtype = info.dtype, .shape = info.shape, .data = std::vector<std::byte>(info.data_bytes())};
    decompress_into(decoded.data, frame, codec, limits, threads);
    return decoded;
}

}  // namespace orbitsplit
