#include <limits>
#include <stdexcept>
#include <string>

#include "codec/calibrated/calibrated.hpp"
#include "codec/calibrated/calibrated_payload.hpp"
#include "codec/calibrated/calibrated_streams.hpp"
#include "codec/frame/encoding.hpp"
#include "codec/frame/layout.hpp"
#include "codec/in_place.hpp"
#include "support/pool.hpp"

namespace orbitsplit {

namespace {

constexpr std::uint64_t most_elements = std::uint64_t{1} << 56;

// Nothing is allocated for an array in memory of the caller, so no limit applies: a frame of another shape is reported as
// such.
constexpr Limits no_limits{.max_bytes = std::numeric_limits<std::uint64_t>::max()};

// Reads the header; throws CorruptFrameError unless the frame was encoded with this codec.
FrameInfo inspect_for(const CalibratedCodec& codec, std::span<const std::byte> frame, const Limits& limits) {
    FrameInfo info = inspect(frame, limits);
    in_place::check_codec(info, calibrated::prepared(codec));
    return info;
}

}  // namespace

namespace in_place {

FrameInfo declare(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec) {
    FrameInfo info = encoding::declare(CodecKind::calibrated, dtype, shape);
    const layout::Rows rows = layout::rows_of(info.shape);
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

WorkspaceSize encode_memory(const FrameInfo& declared, const calibrated::Prepared& codec, int threads) {
    return calibrated::encode_memory(codec, declared.dtype, layout::rows_of(declared.shape), threads);
}

WorkspaceSize decode_memory(DType dtype, std::span<const std::int64_t> shape,
                            const calibrated::Prepared& codec) {
    return calibrated::decode_memory(codec, dtype, layout::rows_of(shape));
}

std::size_t encode(std::span<std::byte> frame, std::span<const std::byte> data, FrameInfo& info,
                   const calibrated::Prepared& codec, const Execution& execution, Workspace& workspace) {
    encoding::check_buffers(info, data, frame);
    info.payload_bytes = calibrated::encode_payload(codec, data.data(), info,
                                                    frame.data() + info.header_bytes(), execution, workspace);
    const std::size_t size = info.header_bytes() + info.payload_bytes;
    layout::write_header(frame, info);
    layout::seal(frame.first(size), execution);
    return size;
}

void check_codec(const FrameInfo& info, const calibrated::Prepared& codec) {
    if (info.codec != CodecKind::calibrated) return;
    const CalibratedParameters& parameters = codec.parameters;
    if (info.key != parameters.key)
        throw CorruptFrameError("frame needs " + layout::describe(info.key) + ", this codec is " +
                                layout::describe(parameters.key));
    const layout::Rows rows = layout::rows_of(info.shape);
    if (rows.length != parameters.step.size())
        throw CorruptFrameError("frame has rows of " + std::to_string(rows.length) +
                                " elements, its codec has " + std::to_string(parameters.step.size()) +
                                " channels");
}

void decode(std::span<std::byte> data, const FrameInfo& info, std::span<const std::byte> frame,
            const calibrated::Prepared& codec, const Execution& execution, Workspace& workspace) {
    if (info.codec != CodecKind::calibrated) return decode(data, info, frame, execution, workspace);
    encoding::check_array(info, data, frame);
    layout::verify_seal(frame, execution);
    calibrated::decode_payload(codec, info, frame.subspan(info.header_bytes()), data.data(), execution,
                               workspace);
}

}  // namespace in_place

std::uint64_t frame_bytes(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec) {
    const FrameInfo info = in_place::declare(dtype, shape, codec);
    return info.header_bytes() + info.payload_bytes;
}

std::size_t compress_into(std::span<std::byte> frame, std::span<const std::byte> data, DType dtype,
                          std::span<const std::int64_t> shape, const CalibratedCodec& codec,
                          const Execution& execution) {
    pool::check_threads(execution.threads);
    FrameInfo info = in_place::declare(dtype, shape, codec);
    LocalWorkspace workspace(execution.threads);
    return in_place::encode(frame, data, info, calibrated::prepared(codec), execution, workspace);
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
    pool::check_threads(execution.threads);
    LocalWorkspace workspace(execution.threads);
    in_place::decode(data, inspect_for(codec, frame, limits), frame, calibrated::prepared(codec), execution,
                     workspace);
}

void decompress_into(std::span<std::byte> data, DType dtype, std::span<const std::int64_t> shape,
                     std::span<const std::byte> frame, const CalibratedCodec& codec,
                     const Execution& execution) {
    pool::check_threads(execution.threads);
    const FrameInfo info = inspect_for(codec, frame, no_limits);
    encoding::check_array(info, dtype, shape);
    LocalWorkspace workspace(execution.threads);
    in_place::decode(data, info, frame, calibrated::prepared(codec), execution, workspace);
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
