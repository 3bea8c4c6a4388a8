#include "orbitsplit/codec.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "codec/entropy/lossless.hpp"
#include "codec/fixed/slices.hpp"
#include "codec/frame/crc32c.hpp"
#include "codec/frame/encoding.hpp"
#include "codec/frame/layout.hpp"
#include "codec/in_place.hpp"
#include "codec/kernels/dispatch.hpp"
#include "support/pool.hpp"
#include "support/stop.hpp"

namespace orbitsplit {

namespace {

struct Name {
    std::string_view text;
    CodecKind kind;
};

constexpr Name names[] = {
    {"raw", CodecKind::raw},   {"bf16", CodecKind::bf16}, {"int8", CodecKind::int8},
    {"int4", CodecKind::int4}, {"topk", CodecKind::topk}, {"lossless_bf16", CodecKind::lossless_bf16},
};

[[noreturn]] void refuse(std::string_view text) {
    throw std::invalid_argument(
        "codec \"" + std::string(text) +
        "\" is unknown; valid are raw, bf16, int8, int8:GROUP, int4, int4:GROUP, topk, "
        "topk:KEEP and lossless_bf16 (GROUP a multiple of 8 from 8 to 65536, KEEP in (0, 1])");
}

bool has_group(CodecKind kind) { return kind == CodecKind::int8 || kind == CodecKind::int4; }

void check(const Codec& codec) {
    if (codec.kind == CodecKind::calibrated)
        throw std::invalid_argument("codec kind is calibrated, which needs a CalibratedCodec");
    if (has_group(codec.kind) &&
        (codec.group < 0 || !layout::is_group(static_cast<std::uint32_t>(codec.group))))
        throw std::invalid_argument("group is " + std::to_string(codec.group) +
                                    ", it must be a multiple of 8 from 8 to 65536");
    if (codec.kind == CodecKind::topk && !(codec.keep > 0 && codec.keep <= 1))
        throw std::invalid_argument("keep is " + std::to_string(codec.keep) + ", it must be in (0, 1]");
}

// The number of values that topk keeps of a row: the nearest integer, ties to even, and at least one.
std::uint32_t kept_values(double keep, std::size_t length) {
    if (length > std::numeric_limits<std::uint32_t>::max())
        throw std::invalid_argument("rows have " + std::to_string(length) +
                                    " elements, topk takes at most 4294967295");
    if (length == 0) return 0;
    return static_cast<std::uint32_t>(std::max(1.0, std::nearbyint(keep * static_cast<double>(length))));
}

// Calls `visit(rows of a chunk, first row)` for chunks of about 1 MB until it returns false.
template <class Visit>
bool for_each_chunk(layout::Rows rows, const Execution& execution, Visit visit) {
    const std::size_t step =
        std::max<std::size_t>(1, (std::size_t{1} << 18) / std::max<std::size_t>(1, rows.length));
    for (std::size_t row = 0; row < rows.count; row += step) {
        throw_if_stopped(execution);
        if (!visit(layout::Rows{std::min(step, rows.count - row), rows.length}, row)) return false;
    }
    return true;
}

// Replaces bitmaps by gaps if those are shorter; the payload shrinks.
void shorten_positions(std::byte* bitmaps, FrameInfo& info, const Execution& execution, Arena& memory) {
    const layout::Rows rows = layout::rows_of(info.shape);
    const std::size_t row_bytes = layout::bitmap_row_bytes(rows);
    const std::size_t bitmap_bytes = rows.count * row_bytes;
    // Every gap takes at least one byte.
    if (rows.count * info.parameter >= bitmap_bytes) return;
    auto* gaps = memory.take<std::byte>(bitmap_bytes);
    std::size_t size = 0;
    const bool are_shorter = for_each_chunk(rows, execution, [&](layout::Rows chunk, std::size_t row) {
        size += kernels::active().select->gaps_of_bitmaps(bitmaps + row * row_bytes, chunk, gaps + size,
                                                          bitmap_bytes - size);
        return size < bitmap_bytes;
    });
    if (!are_shorter) return;
    std::copy_n(gaps, size, bitmaps);
    info.index_gaps = true;
    info.payload_bytes -= bitmap_bytes - size;
}

// Returns false if a value is not finite.
bool encode_topk(const std::byte* data, FrameInfo& info, std::byte* payload, const Execution& execution,
                 Arena& memory) {
    const layout::Rows rows = layout::rows_of(info.shape);
    const std::size_t row_bytes = rows.length * item_bytes(info.dtype);
    std::byte* bitmaps = payload + rows.count * info.parameter * 2;
    auto* scratch = memory.take<std::uint32_t>(rows.count > 0 ? 2 * rows.length : 0);
    const auto select_largest =
        kernels::active().select->select_largest[static_cast<std::size_t>(info.dtype)];
    const bool is_finite = for_each_chunk(rows, execution, [&](layout::Rows chunk, std::size_t row) {
        return select_largest(data + row * row_bytes, chunk, info.parameter, scratch,
                              payload + row * info.parameter * 2,
                              bitmaps + row * layout::bitmap_row_bytes(rows));
    });
    if (is_finite) shorten_positions(bitmaps, info, execution, memory);
    return is_finite;
}

// Bytes of the first `count` gaps, each of which ends with a byte below 255; all bytes if there are fewer gaps.
std::size_t gap_bytes(std::span<const std::byte> gaps, std::size_t count) {
    std::size_t at = 0;
    for (; count > 0 && at < gaps.size(); ++at) count -= static_cast<std::size_t>(gaps[at] != std::byte{255});
    return at;
}

void decode_topk(std::span<std::byte> data, const FrameInfo& info, std::span<const std::byte> payload,
                 const Execution& execution) {
    const layout::Rows rows = layout::rows_of(info.shape);
    const std::size_t value_bytes = rows.count * info.parameter * 2;
    if (payload.size() < value_bytes)
        throw CorruptFrameError("frame has a payload of " + std::to_string(payload.size()) +
                                " bytes, its values need " + std::to_string(value_bytes));
    std::span<const std::byte> positions = payload.subspan(value_bytes);
    const kernels::Select& select = *kernels::active().select;
    const auto dtype = static_cast<std::size_t>(info.dtype);
    const std::size_t kept = info.parameter;
    const bool is_valid = for_each_chunk(rows, execution, [&](layout::Rows chunk, std::size_t row) {
        const std::byte* values = payload.data() + row * kept * 2;
        std::byte* out = data.data() + row * rows.length * item_bytes(info.dtype);
        const std::span<const std::byte> here =
            positions.first(info.index_gaps ? gap_bytes(positions, chunk.count * kept)
                                            : chunk.count * layout::bitmap_row_bytes(rows));
        positions = positions.subspan(here.size());
        return info.index_gaps
                   ? select.place_by_gaps[dtype](values, here.data(), here.size(), chunk, kept, out)
                   : select.place_by_bitmap[dtype](values, here.data(), chunk, kept, out);
    });
    if (!is_valid || !positions.empty())
        throw CorruptFrameError("frame does not place exactly " + std::to_string(info.parameter) +
                                " values in each row of " + std::to_string(rows.length));
}

void decode_lossless(std::span<std::byte> data, const FrameInfo& info, std::span<const std::byte> frame,
                     std::span<const std::byte> payload, const Execution& execution, Arena& memory) {
    std::uint32_t checksum = 0;
    try {
        checksum = lossless::decode(payload, info.dtype, info.elements(), data.data(),
                                    layout::header_checksum(frame), execution, memory);
    } catch (const CorruptFrameError&) {
        layout::verify_seal(frame, execution);  // a damaged frame is reported as damaged
        throw;
    }
    layout::verify_seal(frame, checksum);
}

void decode_payload(std::span<std::byte> data, const FrameInfo& info, std::span<const std::byte> frame,
                    const Execution& execution, Arena& memory) {
    const std::span<const std::byte> payload = frame.subspan(info.header_bytes());
    if (info.codec == CodecKind::lossless_bf16)
        return decode_lossless(data, info, frame, payload, execution, memory);
    if (!slices::supports(info.codec)) {
        layout::verify_seal(frame, execution);
        if (info.codec == CodecKind::calibrated)
            throw CorruptFrameError("frame needs " + layout::describe(info.key) + ", none was given");
        return decode_topk(data, info, payload, execution);
    }
    const slices::Outcome outcome =
        slices::decode(data.data(), info, payload.data(), layout::header_checksum(frame), execution, memory);
    layout::verify_seal(frame, outcome.checksum);
    if (!outcome.is_valid) throw CorruptFrameError("frame has a scale that is not a positive, normal number");
}

template <class Number>
Number parse_number(std::string_view number, std::string_view text) {
    Number value{};
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    if (error != std::errc{} || end != number.data() + number.size()) refuse(text);
    return value;
}

}  // namespace

namespace in_place {

FrameInfo declare(DType dtype, std::span<const std::int64_t> shape, const Codec& codec) {
    check(codec);
    FrameInfo info = encoding::declare(codec.kind, dtype, shape);
    if (has_group(codec.kind)) info.parameter = static_cast<std::uint32_t>(codec.group);
    if (codec.kind == CodecKind::topk)
        info.parameter = kept_values(codec.keep, layout::rows_of(info.shape).length);
    info.payload_bytes = layout::payload_bound(info);
    return info;
}

WorkspaceSize encode_memory(const FrameInfo& declared, int threads) {
    const layout::Rows rows = layout::rows_of(declared.shape);
    if (declared.codec == CodecKind::lossless_bf16)
        return {.call = lossless::encode_memory_bytes(declared.elements())};
    if (declared.codec == CodecKind::topk && rows.count > 0)
        return {.call = Arena::padded(2 * sizeof(std::uint32_t) * rows.length) +
                        Arena::padded(rows.count * layout::bitmap_row_bytes(rows))};
    return {.call = slices::memory_bytes(threads)};
}

WorkspaceSize decode_memory(DType dtype, std::span<const std::int64_t> shape, int threads) {
    const std::uint64_t count = layout::count_elements(shape, dtype).value_or(0);
    return {.call = std::max(slices::memory_bytes(threads), lossless::decode_memory_bytes(count))};
}

std::size_t encode(std::span<std::byte> frame, std::span<const std::byte> data, FrameInfo& info,
                   const Execution& execution, Workspace& workspace) {
    encoding::check_buffers(info, data, frame);
    const std::string_view name = std::ranges::find(names, info.codec, &Name::kind)->text;
    std::byte* payload = frame.data() + info.header_bytes();
    if (info.codec == CodecKind::lossless_bf16) {
        const lossless::Encoded encoded =
            lossless::encode(data.data(), info.dtype, info.elements(), payload, execution, workspace.call());
        info.payload_bytes = encoded.bytes;
        layout::write_header(frame, info);
        layout::seal(frame, crc32c_combine(layout::header_checksum(frame), encoded.checksum, encoded.bytes));
    } else if (info.codec == CodecKind::topk) {
        if (!encode_topk(data.data(), info, payload, execution, workspace.call()))
            encoding::refuse_non_finite(data.data(), info, name);
        layout::write_header(frame, info);
        layout::seal(frame.first(info.header_bytes() + info.payload_bytes), execution);
    } else {
        layout::write_header(frame, info);
        const auto checksum = slices::encode(data.data(), info, payload, layout::header_checksum(frame),
                                             execution, workspace.call());
        if (!checksum) encoding::refuse_non_finite(data.data(), info, name);
        layout::seal(frame, *checksum);
    }
    return info.header_bytes() + info.payload_bytes;
}

void decode(std::span<std::byte> data, const FrameInfo& info, std::span<const std::byte> frame,
            const Execution& execution, Workspace& workspace) {
    encoding::check_array(info, data, frame);
    decode_payload(data, info, frame, execution, workspace.call());
}

}  // namespace in_place

Codec parse_codec(std::string_view text) {
    const std::size_t colon = text.find(':');
    const auto* name = std::ranges::find(names, text.substr(0, colon), &Name::text);
    if (name == std::end(names)) refuse(text);
    Codec codec{.kind = name->kind};
    if (colon == std::string_view::npos) return codec;
    const std::string_view number = text.substr(colon + 1);
    if (has_group(codec.kind))
        codec.group = parse_number<std::int32_t>(number, text);
    else if (codec.kind == CodecKind::topk)
        codec.keep = parse_number<double>(number, text);
    else
        refuse(text);
    check(codec);
    return codec;
}

std::uint64_t frame_bytes(DType dtype, std::span<const std::int64_t> shape, const Codec& codec) {
    const FrameInfo info = in_place::declare(dtype, shape, codec);
    return info.header_bytes() + info.payload_bytes;
}

std::size_t compress_into(std::span<std::byte> frame, std::span<const std::byte> data, DType dtype,
                          std::span<const std::int64_t> shape, const Codec& codec,
                          const Execution& execution) {
    pool::check_threads(execution.threads);
    FrameInfo info = in_place::declare(dtype, shape, codec);
    LocalWorkspace workspace(execution.threads);
    return in_place::encode(frame, data, info, execution, workspace);
}

std::vector<std::byte> compress(std::span<const std::byte> data, DType dtype,
                                std::span<const std::int64_t> shape, const Codec& codec,
                                const Execution& execution) {
    std::vector<std::byte> frame(frame_bytes(dtype, shape, codec));
    frame.resize(compress_into(frame, data, dtype, shape, codec, execution));
    return frame;
}

void decompress_into(std::span<std::byte> data, std::span<const std::byte> frame, const Limits& limits,
                     const Execution& execution) {
    pool::check_threads(execution.threads);
    LocalWorkspace workspace(execution.threads);
    in_place::decode(data, inspect(frame, limits), frame, execution, workspace);
}

void decompress_into(std::span<std::byte> data, DType dtype, std::span<const std::int64_t> shape,
                     std::span<const std::byte> frame, const Execution& execution) {
    pool::check_threads(execution.threads);
    // Nothing is allocated, so no limit applies: a frame of another shape is reported as such.
    const FrameInfo info = inspect(frame, {.max_bytes = std::numeric_limits<std::uint64_t>::max()});
    encoding::check_array(info, dtype, shape);
    LocalWorkspace workspace(execution.threads);
    in_place::decode(data, info, frame, execution, workspace);
}

Decoded decompress(std::span<const std::byte> frame, const Limits& limits, const Execution& execution) {
    const FrameInfo info = inspect(frame, limits);
    Decoded decoded{
        .dtype = info.dtype, .shape = info.shape, .data = std::vector<std::byte>(info.data_bytes())};
    decompress_into(decoded.data, frame, limits, execution);
    return decoded;
}

}  // namespace orbitsplit
