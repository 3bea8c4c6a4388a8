// Mutates frames for libFuzzer. Mutated bytes would rarely pass the checksum or the length of the payload. Most are therefore
// repaired after mutation, to reach the payload parsers; the others test the header's checks.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "codec/frame/layout.hpp"
#include "orbitsplit/codec.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace fuzz {

using namespace orbitsplit;

// The calibrated codecs that a target knows, and the codebook that frames name for them.
struct BookLevel {
    std::uint16_t cut;
    std::uint16_t level;
    std::size_t width;
};

struct Book {
    std::uint64_t id;
    std::vector<BookLevel> levels;
};

constexpr std::size_t codec_kinds = 7;

using namespace layout::offsets;

// The header of a frame, whose fields may have any contents after mutations.
struct Header {
    CodecKind codec;
    DType dtype;
    std::size_t rank;
    bool index_gaps;
    std::uint32_t parameter;
    std::size_t width;  // of a calibrated codec
    std::vector<std::int64_t> shape;

    std::size_t bytes() const { return layout::fixed_header_bytes + 8 * rank; }
};

// Identity and reserved fields as a reader expects them.
inline Header repair_identity(std::span<std::byte> frame, const Book& book) {
    const auto wrap = [&](std::size_t at, std::size_t count) {
        const std::size_t value = std::to_integer<std::size_t>(frame[at]) % count;
        frame[at] = static_cast<std::byte>(value);
        return value;
    };
    std::memcpy(frame.data(), "OSPF\1", 5);
    const auto codec = static_cast<CodecKind>(wrap(codec_at, codec_kinds));
    const auto dtype = static_cast<DType>(wrap(dtype_at, 3));
    const std::size_t room = (frame.size() - layout::fixed_header_bytes) / 8;
    const std::size_t rank = wrap(rank_at, std::min(room, max_rank) + 1);
    std::memset(frame.data() + flags_at + 1, 0, 3);
    const bool index_gaps = wrap(flags_at, codec == CodecKind::topk ? 2 : 1) == 1;
    std::memset(frame.data() + codebook_at, 0, 8);
    std::size_t width = 0;
    if (codec == CodecKind::calibrated) {
        const BookLevel& level = book.levels[wrap(cut_at, book.levels.size())];
        width = level.width;
        std::memcpy(frame.data() + codebook_at, &book.id, sizeof book.id);
        std::memcpy(frame.data() + cut_at, &level.cut, sizeof level.cut);
        std::memcpy(frame.data() + level_at, &level.level, sizeof level.level);
    } else {
        std::memset(frame.data() + cut_at, 0, 4);
    }
    return {codec, dtype, rank, index_gaps, 0, width, std::vector<std::int64_t>(rank)};
}

// The limit to which each axis is wrapped: few elements, or with large frames enough for several streams.
inline std::uint64_t extent_limit(const Header& header, std::size_t axis, bool is_large) {
    const bool is_last = axis + 1 == header.rank;
    if (is_large && header.codec == CodecKind::lossless_bf16) return is_last ? 66'000 : 6;
    if (is_large && header.codec == CodecKind::calibrated) return 1'200;
    return is_last ? 300 : 5;
}

// Axes within these limits and a matching parameter, so that valid arrays are common.
inline void repair_shape(std::span<std::byte> frame, Header& header, std::minstd_rand& random,
                         bool is_large) {
    for (std::size_t axis = 0; axis < header.rank; ++axis) {
        std::byte* at = frame.data() + shape_at + 8 * axis;
        std::uint64_t extent;
        std::memcpy(&extent, at, sizeof extent);
        extent %= extent_limit(header, axis, is_large);
        if (extent == 0 && random() % 16 != 0) extent = 1;
        if (axis + 1 == header.rank && header.codec == CodecKind::calibrated) extent = header.width;
        std::memcpy(at, &extent, sizeof extent);
        header.shape[axis] = static_cast<std::int64_t>(extent);
    }
    std::uint32_t parameter;
    std::memcpy(&parameter, frame.data() + parameter_at, sizeof parameter);
    switch (header.codec) {
        case CodecKind::int8:
        case CodecKind::int4:
            parameter = 8 + 8 * (parameter / 8 % 16);
            break;
        case CodecKind::topk: {
            const auto length = static_cast<std::uint32_t>(layout::rows_of(header.shape).length);
            parameter = length == 0 ? 0 : 1 + parameter % length;
            break;
        }
        case CodecKind::calibrated:
            parameter %= 64;
            break;
        default:
            parameter = 0;
    }
    std::memcpy(frame.data() + parameter_at, &parameter, sizeof parameter);
    header.parameter = parameter;
}

// Resizes a frame to what its header requires, if that is defined and fits the memory.
inline std::size_t repair_size(std::size_t size, const Header& header, std::size_t max_size) {
    if (header.codec == CodecKind::calibrated || header.codec == CodecKind::lossless_bf16) return size;
    const FrameInfo info{.codec = header.codec,
                         .dtype = header.dtype,
                         .index_gaps = header.index_gaps,
                         .parameter = header.parameter,
                         .shape = header.shape,
                         .payload_bytes = 0};
    const std::uint64_t bound = header.bytes() + layout::payload_bound(info);
    if (header.index_gaps) return size < bound || bound == header.bytes() ? size : bound - 1;
    return bound <= max_size ? bound : size;
}

// A valid checksum for any other bytes.
inline void seal(std::span<std::byte> frame) {
    std::memset(frame.data() + checksum_at, 0, 4);
    const std::uint32_t checksum = crc32c(frame);
    std::memcpy(frame.data() + checksum_at, &checksum, sizeof checksum);
}

// `fresh` makes a frame of a random array, as a starting point that mutations of the corpus do not reach.
template <class Fresh>
std::size_t mutate_frame(std::uint8_t* data, std::size_t size, std::size_t max_size, unsigned seed,
                         const Book& book, bool is_large, Fresh fresh) {
    std::minstd_rand random(seed);
    if (random() % (is_large ? 4 : 64) == 0) {
        const std::vector<std::byte> made = fresh(random);
        if (made.size() <= max_size) {
            std::memcpy(data, made.data(), made.size());
            size = made.size();
        }
    }
    size = LLVMFuzzerMutate(data, size, max_size);
    if (size < layout::fixed_header_bytes || random() % 16 == 0) return size;
    const auto frame = std::as_writable_bytes(std::span(data, max_size));
    if (random() % 8 != 0) {
        Header header = repair_identity(frame.first(size), book);
        if (random() % 8 != 0) {
            repair_shape(frame, header, random, is_large);
            const std::size_t repaired = repair_size(size, header, max_size);
            for (std::size_t i = size; i < repaired; ++i) data[i] = static_cast<std::uint8_t>(random() >> 8);
            size = repaired;
        }
        const std::uint64_t payload_bytes = size - header.bytes();
        std::memcpy(data + payload_bytes_at, &payload_bytes, sizeof payload_bytes);
    }
    seal(frame.first(size));
    return size;
}

// Bytes of elements with exponents around 1, as in activations.
inline std::vector<std::byte> random_array(DType dtype, std::size_t elements, std::minstd_rand& random) {
    std::vector<std::byte> data(elements * item_bytes(dtype));
    for (std::size_t i = 0; i < data.size(); ++i) {
        // Every fourth (second) byte ends an element.
        const bool ends = i % item_bytes(dtype) == item_bytes(dtype) - 1;
        data[i] = static_cast<std::byte>(ends ? (random() & 0x80) | 0x3E | (random() & 1) : random() >> 8);
    }
    return data;
}

}  // namespace fuzz
