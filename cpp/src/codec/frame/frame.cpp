#include "orbitsplit/frame.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "codec/entropy/lossless.hpp"
#include "codec/frame/layout.hpp"
#include "orbitsplit/error.hpp"
#include "support/message.hpp"
#include "support/stop.hpp"

static_assert(std::endian::native == std::endian::little,
              "frames are little-endian and written by plain stores");

namespace orbitsplit {

namespace {

constexpr std::array<std::uint8_t, 4> magic = {'O', 'S', 'P', 'F'};
constexpr std::uint8_t version = 1;
constexpr std::uint16_t index_gaps_flag = 1;

using namespace layout::offsets;

template <class T>
T load(std::span<const std::byte> frame, std::size_t at) {
    T value;
    std::memcpy(&value, frame.data() + at, sizeof value);
    return value;
}

template <class T>
void store(std::span<std::byte> frame, std::size_t at, T value) {
    std::memcpy(frame.data() + at, &value, sizeof value);
}

// Only called on failure: building a message takes several allocations, and a decode step has microseconds.
template <class... Parts>
[[noreturn]] void corrupt(const Parts&... parts) {
    throw CorruptFrameError(message::joined("frame ", parts...));
}

void check_identity(std::span<const std::byte> frame) {
    if (frame.size() < layout::fixed_header_bytes)
        corrupt("has ", frame.size(), " bytes, a header needs at least ", layout::fixed_header_bytes);
    if (std::memcmp(frame.data(), magic.data(), magic.size()) != 0) corrupt("does not begin with OSPF");
    const auto declared = [&](std::size_t at) { return unsigned{load<std::uint8_t>(frame, at)}; };
    if (declared(version_at) != version)
        corrupt("has version ", declared(version_at), ", this reader knows 1");
    if (declared(codec_at) > static_cast<unsigned>(CodecKind::calibrated))
        corrupt("has codec id ", declared(codec_at), ", this reader knows 0 to 6");
    if (declared(dtype_at) > static_cast<unsigned>(DType::bfloat16))
        corrupt("has dtype id ", declared(dtype_at), ", this reader knows 0 to 2");
    if (declared(rank_at) > max_rank) corrupt("has rank ", declared(rank_at), ", the limit is ", max_rank);
    const std::size_t header = layout::fixed_header_bytes + 8 * declared(rank_at);
    if (frame.size() < header) corrupt("has ", frame.size(), " bytes, its header needs ", header);
}

// Fields that this version leaves zero may get a meaning later: ignoring them could silently misread a frame.
void check_reserved(std::span<const std::byte> frame) {
    const auto flags = load<std::uint16_t>(frame, flags_at);
    const bool is_topk = load<std::uint8_t>(frame, codec_at) == static_cast<std::uint8_t>(CodecKind::topk);
    if ((flags & ~(is_topk ? index_gaps_flag : 0)) != 0)
        corrupt("has flags ", flags, " this reader does not know");
    const bool is_calibrated = load<CodecKind>(frame, codec_at) == CodecKind::calibrated;
    if (load<std::uint16_t>(frame, flags_at + 2) != 0 ||
        (!is_calibrated && load<std::uint32_t>(frame, cut_at) != 0))
        corrupt("uses reserved header bytes, this reader expects zeros");
    const bool has_codebook = load<std::uint64_t>(frame, codebook_at) != 0;
    if (is_calibrated == has_codebook) return;
    // Report damage first: there would be no point in looking for a codebook that a damaged header names.
    layout::verify_seal(frame, Execution{});
    if (has_codebook) corrupt("names a codebook, its codec has none");
    corrupt("is calibrated and names no codebook");
}

void check_parameter(const FrameInfo& info) {
    switch (info.codec) {
        case CodecKind::raw:
        case CodecKind::bf16:
        case CodecKind::lossless_bf16:
            if (info.parameter != 0) corrupt("has codec parameter ", info.parameter, ", its codec has none");
            return;
        case CodecKind::int8:
        case CodecKind::int4:
            if (!layout::is_group(info.parameter))
                corrupt("has groups of ", info.parameter, ", a group is a multiple of 8 from 8 to 65536");
            return;
        case CodecKind::topk: {
            const std::size_t length = layout::rows_of(info.shape).length;
            if (info.parameter > length || (info.parameter == 0 && length > 0))
                corrupt("keeps ", info.parameter, " values of rows of ", length);
            return;
        }
        case CodecKind::calibrated:
            return;  // checked against the payload
    }
}

void check_limit(std::uint64_t array_bytes, std::size_t frame_bytes, const Limits& limits) {
    const std::uint64_t limit = limits.max_bytes.value_or(default_max_bytes(frame_bytes));
    if (array_bytes <= limit) return;
    if (limits.max_bytes) corrupt("declares an array of ", array_bytes, " bytes, the limit is ", limit);
    corrupt("declares an array of ", array_bytes, " bytes, the limit is ", limit, " for a frame of ",
            frame_bytes, " unless max_bytes is given");
}

void check_sizes(const FrameInfo& info, std::uint64_t present, const Limits& limits) {
    const auto elements = layout::count_elements(info.shape, info.dtype);
    if (!elements) corrupt("declares a shape of 2^63 bytes or more");
    check_limit(*elements * item_bytes(info.dtype), info.header_bytes() + present, limits);
    check_parameter(info);
    if (info.payload_bytes != present)
        corrupt("declares a payload of ", info.payload_bytes, " bytes, it has ", present);
    if (info.codec == CodecKind::calibrated) return;  // depends on parameters that are not in the frame
    const std::uint64_t bound = layout::payload_bound(info);
    if (info.codec == CodecKind::lossless_bf16) {
        const std::uint64_t least = lossless::smallest_payload(*elements);
        if (present < least || present > bound)
            corrupt("has a payload of ", present, " bytes, its shape and codec need ", least, " to ", bound);
        return;
    }
    // A list of gaps is only written if it is shorter than the bitmap; its exact length is checked while decoding.
    if (info.index_gaps ? present >= bound : present != bound)
        corrupt("has a payload of ", present, " bytes, its shape and codec need ",
                info.index_gaps ? "fewer than " : "", bound);
}

std::size_t header_size(std::span<const std::byte> frame) {
    return layout::fixed_header_bytes + 8 * std::size_t{load<std::uint8_t>(frame, rank_at)};
}

std::uint32_t checksum(std::span<const std::byte> frame, const Execution& execution) {
    constexpr std::size_t checked_bytes = std::size_t{1} << 20;
    std::uint32_t sum = layout::header_checksum(frame);
    for (frame = frame.subspan(header_size(frame)); !frame.empty();) {
        throw_if_stopped(execution);
        const std::size_t here = std::min(frame.size(), checked_bytes);
        sum = crc32c(frame.first(here), sum);
        frame = frame.subspan(here);
    }
    return sum;
}

}  // namespace

std::uint64_t default_max_bytes(std::size_t frame_bytes) {
    constexpr std::uint64_t least = std::uint64_t{16} << 20;
    constexpr std::uint64_t most = std::uint64_t{1} << 30;
    constexpr std::uint64_t expansion = 8192;
    return std::min(most, least + expansion * std::min<std::uint64_t>(frame_bytes, most / expansion));
}

std::size_t item_bytes(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

std::uint64_t FrameInfo::elements() const {
    const layout::Rows rows = layout::rows_of(shape);
    return std::uint64_t{rows.count} * rows.length;
}

std::uint64_t FrameInfo::data_bytes() const { return elements() * item_bytes(dtype); }

std::size_t FrameInfo::header_bytes() const { return layout::fixed_header_bytes + 8 * shape.size(); }

FrameInfo inspect(std::span<const std::byte> frame, const Limits& limits) {
    FrameInfo info{};
    layout::read_header(frame, limits, info);
    return info;
}

namespace layout {

Rows rows_of(std::span<const std::int64_t> shape) {
    if (shape.empty()) return {1, 1};
    Rows rows{1, static_cast<std::size_t>(shape.back())};
    // With an empty axis the array is empty whatever the other axes: there are no rows.
    for (const std::int64_t extent : shape)
        if (extent == 0) return {0, rows.length};
    for (const std::int64_t extent : shape.first(shape.size() - 1))
        rows.count *= static_cast<std::size_t>(extent);
    return rows;
}

std::optional<std::uint64_t> count_elements(std::span<const std::int64_t> shape, DType dtype) {
    const std::uint64_t limit = ((std::uint64_t{1} << 63) - 1) / item_bytes(dtype);
    std::uint64_t product = 1;
    bool is_empty = false;
    for (const std::int64_t extent : shape) {
        if (extent < 0) return std::nullopt;
        is_empty = is_empty || extent == 0;
        // NumPy and PyTorch do not support such shapes even if another axis is empty.
        if (extent > 0 && product > limit / static_cast<std::uint64_t>(extent)) return std::nullopt;
        if (extent > 0) product *= static_cast<std::uint64_t>(extent);
    }
    return is_empty ? 0 : product;
}

bool is_group(std::uint32_t group) {
    return group >= smallest_group && group <= largest_group && group % 8 == 0;
}

std::uint64_t payload_bound(const FrameInfo& info) {
    const Rows rows = rows_of(info.shape);
    const std::uint64_t elements = info.elements();
    switch (info.codec) {
        case CodecKind::raw:
            return elements * item_bytes(info.dtype);
        case CodecKind::bf16:
            return elements * 2;
        case CodecKind::int8:
            return rows.count * groups_per_row(rows, info.parameter) * 2 + elements;
        case CodecKind::int4:
            return rows.count * (groups_per_row(rows, info.parameter) * 2 + packed_row_bytes(rows));
        case CodecKind::topk:
            return rows.count * (std::uint64_t{info.parameter} * 2 + bitmap_row_bytes(rows));
        case CodecKind::lossless_bf16:
            return lossless::largest_payload(elements);
        case CodecKind::calibrated:
            break;  // calibrated_frame.cpp
    }
    return 0;
}

void read_header(std::span<const std::byte> frame, const Limits& limits, FrameInfo& info) {
    check_identity(frame);
    check_reserved(frame);
    info.codec = static_cast<CodecKind>(load<std::uint8_t>(frame, codec_at));
    info.dtype = static_cast<DType>(load<std::uint8_t>(frame, dtype_at));
    info.index_gaps = load<std::uint16_t>(frame, flags_at) == index_gaps_flag;
    info.parameter = load<std::uint32_t>(frame, parameter_at);
    info.shape.resize(load<std::uint8_t>(frame, rank_at));
    info.payload_bytes = load<std::uint64_t>(frame, payload_bytes_at);
    info.key = {.codebook = load<std::uint64_t>(frame, codebook_at),
                .cut = load<std::uint16_t>(frame, cut_at),
                .level = load<std::uint16_t>(frame, level_at)};
    for (std::size_t axis = 0; axis < info.shape.size(); ++axis)
        info.shape[axis] = load<std::int64_t>(frame, shape_at + 8 * axis);
    check_sizes(info, frame.size() - info.header_bytes(), limits);
}

std::string describe(const CodebookKey& key) {
    return "codebook " + std::to_string(key.codebook) + ", cut " + std::to_string(key.cut) + ", level " +
           std::to_string(key.level);
}

void write_header(std::span<std::byte> frame, const FrameInfo& info) {
    std::memset(frame.data(), 0, fixed_header_bytes);
    std::memcpy(frame.data(), magic.data(), magic.size());
    store(frame, version_at, version);
    store(frame, codec_at, info.codec);
    store(frame, dtype_at, info.dtype);
    store(frame, rank_at, static_cast<std::uint8_t>(info.shape.size()));
    store(frame, flags_at, info.index_gaps ? index_gaps_flag : std::uint16_t{0});
    store(frame, parameter_at, info.parameter);
    store(frame, codebook_at, info.key.codebook);
    store(frame, payload_bytes_at, info.payload_bytes);
    store(frame, cut_at, info.key.cut);
    store(frame, level_at, info.key.level);
    for (std::size_t axis = 0; axis < info.shape.size(); ++axis)
        store(frame, shape_at + 8 * axis, info.shape[axis]);
}

std::uint32_t header_checksum(std::span<const std::byte> frame) {
    const std::array<std::byte, 4> blank{};
    const std::uint32_t fixed = crc32c(blank, crc32c(frame.first(checksum_at)));
    return crc32c(frame.subspan(shape_at, header_size(frame) - shape_at), fixed);
}

void seal(std::span<std::byte> frame, std::uint32_t computed) { store(frame, checksum_at, computed); }

void verify_seal(std::span<const std::byte> frame, std::uint32_t computed) {
    const auto written = load<std::uint32_t>(frame, checksum_at);
    if (written != computed)
        corrupt("is damaged: it carries checksum ", written, ", its bytes give ", computed);
}

void seal(std::span<std::byte> frame, const Execution& execution) { seal(frame, checksum(frame, execution)); }

void verify_seal(std::span<const std::byte> frame, const Execution& execution) {
    verify_seal(frame, checksum(frame, execution));
}

}  // namespace layout

}  // namespace orbitsplit
