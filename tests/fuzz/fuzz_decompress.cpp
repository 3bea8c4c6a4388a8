// A libFuzzer target: any bytes yield an array or CorruptFrameError, without a crash, an access outside the frame, an
// allocation beyond the limit (-malloc_limit_mb) or a hang (-timeout).
//
// Mutated bytes would rarely pass the checksum or the length of the payload. Most inputs are therefore repaired after
// mutation, to reach the payload parsers; the others test the header's checks.
//
// With ORBITSPLIT_FUZZ_LARGE set, frames have several streams, which readers decode interleaved: hundreds of rows of
// calibrated codes, hundreds of thousands of lossless_bf16 values. Such a run needs a matching -max_len.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "codec/frame/layout.hpp"
#include "orbitsplit/calibrated.hpp"
#include "orbitsplit/codec.hpp"

using namespace orbitsplit;

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

const bool is_large = std::getenv("ORBITSPLIT_FUZZ_LARGE") != nullptr;
const Limits limits{.max_bytes = is_large ? 1U << 20 : 1U << 16};
constexpr std::size_t codec_kinds = 7;
constexpr std::array codecs = {"raw",     "bf16", "int8:8",    "int8",         "int4",
                               "int4:16", "topk", "topk:0.02", "lossless_bf16"};

// Offsets of docs/internals/frame_format.md.
constexpr std::size_t codec_at = 5;
constexpr std::size_t dtype_at = 6;
constexpr std::size_t rank_at = 7;
constexpr std::size_t flags_at = 8;
constexpr std::size_t parameter_at = 12;
constexpr std::size_t codebook_at = 16;
constexpr std::size_t payload_bytes_at = 24;
constexpr std::size_t cut_at = 32;
constexpr std::size_t checksum_at = 36;
constexpr std::size_t shape_at = layout::fixed_header_bytes;

// Fuzzing in which every input is rejected proves little: at exit, print how many inputs were arrays.
struct Tally {
    std::uint64_t inputs = 0;
    std::uint64_t arrays = 0;
    ~Tally() {
        std::fprintf(stderr, "decoded %llu of %llu inputs\n", static_cast<unsigned long long>(arrays),
                     static_cast<unsigned long long>(inputs));
    }
};

Tally tally;

void require(bool condition, const char* claim) {
    if (condition) return;
    std::fprintf(stderr, "broken: %s\n", claim);
    std::abort();
}

// The codebook that frames are decoded with: cut c of it is the c-th of these. With and without tables (one of them
// nearly all escape) and transforms, and steps so small that values escape.
const std::vector<CalibratedCodec>& codebook() {
    static const std::vector<CalibratedCodec> codecs = [] {
        const auto parameters = [](std::uint16_t cut, std::size_t width) {
            CalibratedParameters made;
            made.key = {.codebook = 1, .cut = cut, .level = 0};
            for (std::size_t c = 0; c < width; ++c) made.step.push_back(c % 7 == 3 ? 0x1p-9F : 0.125F);
            return made;
        };
        const auto with_tables = [](CalibratedParameters made) {
            made.tables.resize(2);
            for (int code = -6; code <= 6; ++code) made.tables[0][static_cast<std::uint8_t>(code)] = 18;
            made.tables[1][0] = 1;
            for (std::size_t c = 0; c < made.step.size(); ++c)
                made.table_of_channel.push_back(static_cast<std::uint8_t>(c % 5 == 0));
            return made;
        };
        std::vector<CalibratedCodec> all;
        all.emplace_back(parameters(0, 33));
        all.emplace_back(with_tables(parameters(1, 33)));
        all.emplace_back(with_tables(parameters(2, 260)));
        CalibratedParameters transformed = with_tables(parameters(3, 64));
        transformed.hadamard = 16;
        transformed.threshold.assign(64, 0.25F);
        all.emplace_back(std::move(transformed));
        return all;
    }();
    return codecs;
}

std::optional<Decoded> try_decompress(std::span<const std::byte> frame) {
    try {
        const FrameInfo info = inspect(frame, limits);
        if (info.codec == CodecKind::calibrated && info.key.cut < codebook().size())
            return decompress(frame, codebook()[info.key.cut], limits);
        return decompress(frame, limits);
    } catch (const CorruptFrameError&) {
        return std::nullopt;
    }
}

// The codec of a frame: an index into `codecs` or, after those, into the codebook.
struct Choice {
    std::size_t codec;
    DType dtype;
    std::array<std::int64_t, 2> shape;

    const CalibratedCodec* calibrated() const {
        return codec < codecs.size() ? nullptr : &codebook()[codec - codecs.size()];
    }
};

Choice choose(std::minstd_rand& random) {
    Choice choice{.codec = random() % (codecs.size() + codebook().size()),
                  .dtype = static_cast<DType>(random() % 3),
                  .shape = {}};
    if (is_large && choice.calibrated() == nullptr) choice.codec = codecs.size() - 1;
    const auto below = [&](unsigned limit) { return static_cast<std::int64_t>(random() % limit); };
    if (choice.calibrated() != nullptr)
        choice.shape = {is_large ? 200 + below(900) : 1 + below(below(4) == 0 ? 130 : 4),
                        static_cast<std::int64_t>(choice.calibrated()->width())};
    else if (is_large)
        choice.shape = {1 + below(5), 60'000 + below(6'000)};
    else
        choice.shape = {1 + below(below(4) == 0 ? 130 : 4), 1 + below(200)};
    return choice;
}

// A frame of a random array, as a starting point that mutations of the corpus do not reach.
std::vector<std::byte> fresh_frame(std::minstd_rand& random) {
    const auto [codec, dtype, shape] = choose(random);
    const CalibratedCodec* calibrated = Choice{codec, dtype, shape}.calibrated();
    std::vector<std::byte> data(static_cast<std::size_t>(shape[0] * shape[1]) * item_bytes(dtype));
    for (std::size_t i = 0; i < data.size(); ++i) {
        // Every fourth (second) byte ends an element: exponents around 1, as in activations.
        const bool ends = i % item_bytes(dtype) == item_bytes(dtype) - 1;
        data[i] = static_cast<std::byte>(ends ? (random() & 0x80) | 0x3E | (random() & 1) : random() >> 8);
    }
    if (calibrated != nullptr) return compress(data, dtype, shape, *calibrated);
    return compress(data, dtype, shape, parse_codec(codecs[codec]));
}

// The header of a frame, whose fields may have any contents after mutations.
struct Header {
    CodecKind codec;
    DType dtype;
    std::size_t rank;
    bool index_gaps;
    std::uint32_t parameter;
    std::vector<std::int64_t> shape;

    std::size_t bytes() const { return layout::fixed_header_bytes + 8 * rank; }
};

// Identity and reserved fields as a reader expects them.
Header repair_identity(std::span<std::byte> frame) {
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
    if (codec == CodecKind::calibrated) {
        frame[codebook_at] = std::byte{1};
        wrap(cut_at, codebook().size());
        std::memset(frame.data() + cut_at + 1, 0, 3);
    } else {
        std::memset(frame.data() + cut_at, 0, 4);
    }
    return {codec, dtype, rank, index_gaps, 0, std::vector<std::int64_t>(rank)};
}

// The limit to which each axis is wrapped: few elements, or with large frames enough for several streams.
std::uint64_t extent_limit(const Header& header, std::size_t axis) {
    const bool is_last = axis + 1 == header.rank;
    if (is_large && header.codec == CodecKind::lossless_bf16) return is_last ? 66'000 : 6;
    if (is_large && header.codec == CodecKind::calibrated) return 1'200;
    return is_last ? 300 : 5;
}

// Axes within these limits and a matching parameter, so that valid arrays are common.
void repair_shape(std::span<std::byte> frame, Header& header, std::minstd_rand& random) {
    for (std::size_t axis = 0; axis < header.rank; ++axis) {
        std::byte* at = frame.data() + shape_at + 8 * axis;
        std::uint64_t extent;
        std::memcpy(&extent, at, sizeof extent);
        extent %= extent_limit(header, axis);
        if (extent == 0 && random() % 16 != 0) extent = 1;
        if (axis + 1 == header.rank && header.codec == CodecKind::calibrated)
            extent = codebook()[std::to_integer<std::size_t>(frame[cut_at])].width();
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
std::size_t repair_size(std::size_t size, const Header& header, std::size_t max_size) {
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
void seal(std::span<std::byte> frame) {
    std::memset(frame.data() + checksum_at, 0, 4);
    const std::uint32_t checksum = crc32c(frame);
    std::memcpy(frame.data() + checksum_at, &checksum, sizeof checksum);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto frame = std::as_bytes(std::span(data, size));
    static const std::vector<std::string> sets = isas();
    set_isa(sets.front());
    std::optional<FrameInfo> info;
    try {
        info = inspect(frame, limits);
    } catch (const CorruptFrameError&) {
    }
    const std::optional<Decoded> decoded = try_decompress(frame);
    ++tally.inputs;
    // Vector code detects damage at other points than scalar code; the outcome must be the same.
    set_isa(sets.size() > 1 ? sets[1 + size % (sets.size() - 1)] : sets.front());
    const std::optional<Decoded> again = try_decompress(frame);
    require(decoded.has_value() == again.has_value(), "all instruction sets refuse the same frames");
    if (!decoded) return 0;
    require(decoded->data == again->data, "all instruction sets decode to the same array");
    ++tally.arrays;
    require(info.has_value(), "what decompress takes, inspect takes");
    require(decoded->data.size() == info->data_bytes() && decoded->data.size() <= limits.max_bytes,
            "the array has the bytes that its frame declares");
    require(decoded->shape == info->shape && decoded->dtype == info->dtype,
            "the array has the shape and dtype that its frame declares");
    return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
    std::minstd_rand random(seed);
    if (random() % (is_large ? 4 : 64) == 0) {
        const std::vector<std::byte> fresh = fresh_frame(random);
        if (fresh.size() <= max_size) {
            std::memcpy(data, fresh.data(), fresh.size());
            size = fresh.size();
        }
    }
    size = LLVMFuzzerMutate(data, size, max_size);
    if (size < layout::fixed_header_bytes || random() % 16 == 0) return size;
    const auto frame = std::as_writable_bytes(std::span(data, max_size));
    if (random() % 8 != 0) {
        Header header = repair_identity(frame.first(size));
        if (random() % 8 != 0) {
            repair_shape(frame, header, random);
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
