#include <limits>
#include <stdexcept>
#include <string>

#include "codec/calibrated/calibrated.hpp"
#include "codec/calibrated/calibrated_payload.hpp"
#include "codec/calibrated/calibrated_streams.hpp"
#include "codec/frame/encoding.hpp"
#include "codec/frame/layout.hpp"
#include "support/pool.hpp"

namespace orbitsplit {

namespace {

using layout::Rows;

constexpr std::uint64_t most_elements = std::uint64_t{1} << 56;

FrameInfo declare(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec) {
    FrameInfo info = encoding::declare(CodecKind::calibrated, dtype, shape);
    const Rows rows = layout::rows_of(info.shape);
    if (rows.length != codec.width())
        throw std::invalid_argument("rows have " + std::to_string(rows.length) + " elements, the codec has " +
                                    std::to_string(codec.width()) + " channels");
    // Beyond this the bound on the frame would overflow 64 bits; no array of this size exists.
    if (info.elements() > most_elements)
        throw std::invalid_argument("shape has " + std::to_string(info.elements()) +
                                    " elements, a calibrated frame holds at most " +
                                    std::to_string(most_elements));
    info.key = codec.parameters().key;
    info.payload_bytes = calibrated::payload_bound(calibrated::prepared(codec), rows);
    return info;
}

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

void decode_inspected(const CalibratedCodec& codec, std::span<std::byte> data, const FrameInfo& info,
                      std::span<const std::byte> frame, const Execution& execution) {
    pool::check_threads(execution.threads);
    if (info.codec != CodecKind::calibrated)
        return decompress_into(data, frame, {.max_bytes = info.data_bytes()}, execution);
    encoding::check_array(info, data, frame);
    layout::verify_seal(frame, execution);
    calibrated::decode_payload(calibrated::prepared(codec), info, frame.subspan(info.header_bytes()),
                               data.data(), execution);
}

}  // namespace

std::uint64_t frame_bytes(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec) {
    const FrameInfo info = declare(dtype, shape, codec);
    return info.header_bytes() + info.payload_bytes;
}

std::size_t compress_into(std::span<std::byte> frame, std::span<const std::byte> data, DType dtype,
                          std::span<const std::int64_t> shape, const CalibratedCodec& codec,
                          const Execution& execution) {
    pool::check_threads(execution.threads);
    FrameInfo info = declare(dtype, shape, codec);
    encoding::check_buffers(info, data, frame);
    info.payload_bytes = calibrated::encode_payload(calibrated::prepared(codec), data.data(), info,
                                                    frame.data() + info.header_bytes(), execution);
    const std::size_t size = info.header_bytes() + info.payload_bytes;
    layout::write_header(frame, info);
    layout::seal(frame.first(size), execution);
    return size;
}

std::vector<std::byte> compress(std::span<const std::byte> data, DType dtype,
                                std::span<const std::int64_t> shape, const CalibratedCodec& codec,
                                const Execution& execution) {
    std::vector<std::byte> frame(frame_bytes(dtype, shape, codec));
    frame.resize(compress_into(frame, data, dtype, shape, codec, execution));
    return frame;
}

void decompress_into(std::span<std::byte> data, std::span<const std::byte> frame,
                     const CalibratedCodec& codec, const Limits& limits, const Execution& execution) {
    decode_inspected(codec, data, inspect_for(codec, frame, limits), frame, execution);
}

void decompress_into(std::span<std::byte> data, DType dtype, std::span<const std::int64_t> shape,
                     std::span<const std::byte> frame, const CalibratedCodec& codec,
                     const Execution& execution) {
    // Nothing is allocated, so no limit applies: a frame of another shape is reported as such.
    const FrameInfo info =
        inspect_for(codec, frame, {.max_bytes = std::numeric_limits<std::uint64_t>::max()});
    encoding::check_array(info, dtype, shape);
    decode_inspected(codec, data, info, frame, execution);
}

Decoded decompress(std::span<const std::byte> frame, const CalibratedCodec& codec, const Limits& limits,
                   const Execution& execution) {
    const FrameInfo info = inspect_for(codec, frame, limits);
    Decoded decoded{
        .dtype = info.dtype, .shape = info.shape, .data = std::vector<std::byte>(info.data_bytes())};
    decompress_into(decoded.data, frame, codec, limits, execution);
    return decoded;
}

}  // namespace orbitsplit
