#include "codec/lossless.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "codec/dispatch.hpp"
#include "codec/stream.hpp"
#include "orbitsplit/error.hpp"

namespace orbitsplit::lossless {

namespace {

constexpr std::byte stored{0};
constexpr std::byte coded{1};

// Values of a stream: its states then cost 0.2 % and a prefill message has streams for every thread.
constexpr std::size_t stream_values = 65536;
// Values on their way at once: what two streams need for so many stays in the first level of cache.
constexpr std::size_t tile = 2048;

constexpr std::size_t block = 64;
constexpr std::size_t sampled_blocks = 512;

std::size_t streams_of(std::size_t count) { return (count + stream_values - 1) / stream_values; }

std::size_t values_of_stream(std::size_t count, std::size_t stream) {
    return std::min(stream_values, count - stream * stream_values);
}

std::size_t directory_bytes(std::size_t streams) { return streams > 1 ? 4 * streams : 0; }

// Values of an array as bfloat16: in place where they are, else converted a tile at a time.
class Source {
  public:
    Source(const std::byte* data, DType dtype) : data_(data), dtype_(dtype) {}

    const std::byte* at(std::size_t first, std::size_t count) {
        const std::byte* here = data_ + first * item_bytes(dtype_);
        if (dtype_ == DType::bfloat16) return here;
        kernels::active().convert->to_bf16[static_cast<std::size_t>(dtype_)](here, count, converted_.data());
        return converted_.data();
    }

  private:
    const std::byte* data_;
    DType dtype_;
    std::array<std::byte, 2 * tile> converted_;
};

// Counts all exponents of a small array. Of a large one 512 blocks of 64, one at some place in each of 512 equal
// parts: places at a fixed distance would see the same channels in every row.
std::array<std::uint64_t, 256> count_exponents(Source& source, std::size_t count) {
    std::array<std::uint64_t, 256> counts{};
    std::array<std::uint8_t, tile> exponents;
    std::array<std::uint8_t, tile> others;
    const auto add = [&](std::size_t first, std::size_t values) {
        kernels::active().planes->split(source.at(first, values), values, exponents.data(), others.data());
        for (std::size_t i = 0; i < values; ++i) ++counts[exponents[i]];
    };
    if (count <= block * sampled_blocks) {
        for (std::size_t first = 0; first < count; first += tile) add(first, std::min(tile, count - first));
        return counts;
    }
    const std::uint64_t part = count / block / sampled_blocks;
    for (std::uint64_t i = 0; i < sampled_blocks; ++i) {
        const std::uint64_t place = (((i * 2654435761U) & 0xFFFFFFFFU) * part) >> 32;
        add((i * part + place) * block, block);
    }
    return counts;
}

// The exponents of one stream, in order; its other bytes go to `plane`. Memory is walked forwards, which it is
// made for, and the stream coder goes backwards in what is left of it in the second level of cache.
void split_values(Source& source, std::size_t first, std::size_t count, std::byte* plane,
                  std::uint8_t* exponents) {
    for (std::size_t at = 0; at < count; at += tile) {
        const std::size_t here = std::min(tile, count - at);
        kernels::active().planes->split(source.at(first + at, here), here, exponents + at,
                                        reinterpret_cast<std::uint8_t*>(plane + at));
    }
}

// Nothing if the coded form is not smaller than `limit` bytes.
std::optional<std::size_t> encode_coded(Source& source, std::size_t count, std::byte* payload,
                                        std::size_t limit) {
    const stream::SymbolTable table = stream::build_table(count_exponents(source, count));
    std::vector<std::byte> head = {coded};
    stream::append_table(table, head);
    const std::size_t streams = streams_of(count);
    std::size_t size = head.size() + count + directory_bytes(streams);
    if (size >= limit) return std::nullopt;
    std::copy(head.begin(), head.end(), payload);
    std::byte* plane = payload + head.size();
    std::byte* directory = plane + count;
    const stream::Tables tables(table);
    const std::size_t largest = std::min(count, stream_values);
    stream::Encoder encoder(tables, 1, largest);
    std::vector<std::uint8_t> exponents(largest + rans::slack_bytes);
    for (std::size_t i = 0; i < streams; ++i) {
        const std::size_t first = i * stream_values;
        const std::size_t values = values_of_stream(count, i);
        split_values(source, first, values, plane + first, exponents.data());
        encoder.start(1, values);
        encoder.add_group(0, exponents.data());
        const auto bytes = static_cast<std::uint32_t>(encoder.size());
        if (size + bytes >= limit) return std::nullopt;
        encoder.finish(payload + size);
        if (streams > 1) std::memcpy(directory + 4 * i, &bytes, 4);
        size += bytes;
    }
    return size;
}

void store_values(std::byte* data, DType dtype, std::size_t count, const std::byte* values) {
    if (dtype == DType::bfloat16)
        std::memcpy(data, values, 2 * count);
    else
        kernels::active().convert->from_bf16[static_cast<std::size_t>(dtype)](values, count, data);
}

// Where the streams of a coded payload lie.
struct Parts {
    stream::SymbolTable table;
    std::span<const std::byte> plane;
    std::vector<std::span<const std::byte>> streams;
};

Parts take_apart(std::span<const std::byte> rest, std::size_t count) {
    Parts parts{.table = stream::take_table(rest), .plane = {}, .streams = {}};
    const std::size_t streams = streams_of(count);
    const std::size_t directory = directory_bytes(streams);
    if (rest.size() < count + directory)
        throw CorruptFrameError("frame has " + std::to_string(rest.size()) +
                                " bytes for signs, mantissas and lengths of streams, they need " +
                                std::to_string(count + directory));
    parts.plane = rest.first(count);
    const std::byte* lengths = rest.data() + count;
    rest = rest.subspan(count + directory);
    for (std::size_t i = 0; i < streams; ++i) {
        auto bytes = static_cast<std::uint32_t>(rest.size());
        if (streams > 1) std::memcpy(&bytes, lengths + 4 * i, 4);
        if (bytes > rest.size() || (i + 1 == streams && bytes != rest.size()))
            throw CorruptFrameError("frame has a stream of " + std::to_string(bytes) + " bytes where " +
                                    std::to_string(rest.size()) + " are left");
        parts.streams.push_back(rest.first(bytes));
        rest = rest.subspan(bytes);
    }
    return parts;
}

// Decoded exponents and the plane to values of the array, a tile at a time.
class Target {
  public:
    Target(std::byte* data, DType dtype, std::span<const std::byte> plane)
        : data_(data), dtype_(dtype), plane_(plane) {}

    void put(std::size_t first, std::size_t count, const std::uint8_t* exponents) {
        std::byte* here = data_ + first * item_bytes(dtype_);
        std::byte* values = dtype_ == DType::bfloat16 ? here : merged_.data();
        kernels::active().planes->merge(
            exponents, reinterpret_cast<const std::uint8_t*>(plane_.data() + first), count, values);
        if (dtype_ != DType::bfloat16) store_values(here, dtype_, count, values);
    }

  private:
    std::byte* data_;
    DType dtype_;
    std::span<const std::byte> plane_;
    std::array<std::byte, 2 * tile> merged_;
};

using Exponents = std::array<std::uint8_t, tile + rans::slack_bytes>;

void decode_streams(const Parts& parts, std::size_t count, const std::byte* end, Target& target) {
    const stream::Tables tables(parts.table);
    const auto decoder_of = [&](std::size_t i) {
        const std::span<const std::byte> bytes = parts.streams[i];
        return stream::Decoder(tables, bytes, static_cast<std::size_t>(end - bytes.data()), 1,
                               values_of_stream(count, i));
    };
    Exponents exponents[2];
    std::size_t i = 0;
    for (; (i + 2) * stream_values <= count; i += 2) {
        stream::Decoder first = decoder_of(i);
        stream::Decoder second = decoder_of(i + 1);
        for (std::size_t at = i * stream_values; at < (i + 1) * stream_values; at += tile) {
            stream::Decoder::next_channels_of_two(tile, first, exponents[0].data(), second,
                                                  exponents[1].data());
            target.put(at, tile, exponents[0].data());
            target.put(at + stream_values, tile, exponents[1].data());
        }
        first.finish();
        second.finish();
    }
    for (; i < parts.streams.size(); ++i) {
        stream::Decoder decoder = decoder_of(i);
        const std::size_t values = values_of_stream(count, i);
        for (std::size_t at = 0; at < values; at += tile) {
            const std::size_t here = std::min(tile, values - at);
            decoder.next_channels(here, exponents[0].data());
            target.put(i * stream_values + at, here, exponents[0].data());
        }
        decoder.finish();
    }
}

}  // namespace

std::size_t encode(const std::byte* data, DType dtype, std::size_t count, std::byte* payload) {
    if (count == 0) return 0;
    Source source(data, dtype);
    if (const auto size = encode_coded(source, count, payload, largest_payload(count))) return *size;
    payload[0] = stored;
    for (std::size_t first = 0; first < count; first += tile) {
        const std::size_t here = std::min(tile, count - first);
        std::memcpy(payload + 1 + 2 * first, source.at(first, here), 2 * here);
    }
    return largest_payload(count);
}

void decode(std::span<const std::byte> payload, DType dtype, std::size_t count, std::byte* data) {
    if (count == 0) return;
    const std::byte form = payload[0];
    if (form == stored) {
        if (payload.size() != largest_payload(count))
            throw CorruptFrameError("frame has " + std::to_string(payload.size()) +
                                    " bytes of stored values, they need " +
                                    std::to_string(largest_payload(count)));
        store_values(data, dtype, count, payload.data() + 1);
        return;
    }
    if (form != coded)
        throw CorruptFrameError("frame has values in form " + std::to_string(std::to_integer<int>(form)) +
                                ", this reader knows 0 and 1");
    const Parts parts = take_apart(payload.subspan(1), count);
    Target target(data, dtype, parts.plane);
    decode_streams(parts, count, payload.data() + payload.size(), target);
}

}  // namespace orbitsplit::lossless
