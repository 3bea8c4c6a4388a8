#include "codec/entropy/lossless.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "codec/entropy/stream.hpp"
#include "codec/frame/crc32c.hpp"
#include "codec/kernels/dispatch.hpp"
#include "orbitsplit/error.hpp"
#include "support/stop.hpp"

namespace orbitsplit::lossless {

namespace {

constexpr std::byte stored{0};
constexpr std::byte coded{1};

// Values of a stream: large enough that its states add only 0.2 %, small enough that a prefill message has several.
constexpr std::size_t stream_values = 65536;
// Values of a stream that are converted at a time: those of four streams stay in the L1 cache.
constexpr std::size_t tile = 1024;

constexpr std::size_t block = 64;
constexpr std::size_t sampled_blocks = 512;

std::size_t streams_of(std::size_t count) { return (count + stream_values - 1) / stream_values; }

std::size_t values_of_stream(std::size_t count, std::size_t stream) {
    return std::min(stream_values, count - stream * stream_values);
}

// The number of streams that are coded interleaved, starting at stream `i`: full ones as far as there are any.
std::size_t together_at(std::size_t i, std::size_t count) {
    return std::clamp<std::size_t>(count / stream_values - i, 1, rans::max_together);
}

std::size_t directory_bytes(std::size_t streams) { return streams > 1 ? 4 * streams : 0; }

// Values of an array as bfloat16: in place if it is one, else converted a tile at a time.
class Source {
  public:
    Source(const std::byte* data, DType dtype) : data_(data), dtype_(dtype) {}

    bool is_in_place() const { return dtype_ == DType::bfloat16; }

    // Converted values are valid until the next call with the same `buffer`.
    const std::byte* at(std::size_t first, std::size_t count, std::size_t buffer = 0) {
        const std::byte* here = data_ + first * item_bytes(dtype_);
        if (is_in_place()) return here;
        std::byte* converted = converted_[buffer].data();
        kernels::active().convert->to_bf16[static_cast<std::size_t>(dtype_)](here, count, converted);
        return converted;
    }

  private:
    const std::byte* data_;
    DType dtype_;
    std::array<std::byte, 2 * tile> converted_[rans::max_together];
};

// How often each exponent occurs: eight sets of counts, because incrementing a count that was just written stalls.
class Histogram {
  public:
    void add(std::span<const std::uint8_t> exponents) {
        std::size_t i = 0;
        for (; i + 8 <= exponents.size(); i += 8) {
            std::uint64_t eight = 0;
            std::memcpy(&eight, exponents.data() + i, sizeof eight);
            for (std::size_t k = 0; k < 8; ++k) ++parts_[k][eight >> (8 * k) & 0xFF];
        }
        for (; i < exponents.size(); ++i) ++parts_[0][exponents[i]];
    }

    std::array<std::uint64_t, 256> counts() const {
        std::array<std::uint64_t, 256> counts{};
        for (const auto& part : parts_)
            for (std::size_t s = 0; s < counts.size(); ++s) counts[s] += part[s];
        return counts;
    }

  private:
    std::array<std::array<std::uint32_t, 256>, 8> parts_{};
};

// Counts all exponents of a small array; of a large one 512 blocks of 64, at a pseudo-random position in each of 512
// equal parts: a fixed stride would sample the same channels of every row.
std::array<std::uint64_t, 256> count_exponents(const std::byte* data, DType dtype, std::size_t count) {
    Source source(data, dtype);
    Histogram histogram;
    std::array<std::uint8_t, tile> exponents;
    const auto add = [&](std::size_t first, std::size_t values) {
        kernels::active().planes->exponents(source.at(first, values), values, exponents.data());
        histogram.add(std::span(exponents).first(values));
    };
    if (count <= block * sampled_blocks) {
        for (std::size_t first = 0; first < count; first += tile) add(first, std::min(tile, count - first));
        return histogram.counts();
    }
    const std::uint64_t part = count / block / sampled_blocks;
    for (std::uint64_t i = 0; i < sampled_blocks; ++i) {
        const std::uint64_t offset = (((i * 2654435761U) & 0xFFFFFFFFU) * part) >> 32;
        add((i * part + offset) * block, block);
    }
    return histogram.counts();
}

// The checksum of a coded payload, whose plane and streams grow at the same time.
class Checksum {
  public:
    void add_plane(std::span<const std::byte> bytes) { plane_ = add(bytes, plane_); }
    void add_streams(std::span<const std::byte> bytes) { streams_ = add(bytes, streams_); }

    // Continues the checksum of what precedes the plane.
    std::uint32_t finish(std::uint32_t before, std::span<const std::byte> directory) const {
        const std::uint32_t plane = crc32c_combine(before, plane_.checksum, plane_.bytes);
        return crc32c_combine(crc32c(directory, plane), streams_.checksum, streams_.bytes);
    }

  private:
    struct Sum {
        std::uint32_t checksum = 0;
        std::size_t bytes = 0;
    };

    static Sum add(std::span<const std::byte> bytes, Sum sum) {
        return {crc32c(bytes, sum.checksum), sum.bytes + bytes.size()};
    }

    Sum plane_;
    Sum streams_;
};

// Encodes several streams of equal length at a time.
class Encoding {
  public:
    Encoding(const stream::Tables& tables, const std::byte* data, DType dtype, std::size_t count,
             Arena& memory)
        : source_(data, dtype), count_(count) {
        for (std::size_t k = 0; k < together_at(0, count); ++k)
            encoders_[k].emplace(tables, 1, values_of_stream(count, 0), memory);
    }

    // Encodes `together` streams starting at `i`; their signs and mantissas go to the plane.
    void encode(std::size_t i, std::size_t together, std::byte* plane) {
        const std::size_t values = values_of_stream(count_, i);
        std::array<stream::Encoder*, rans::max_together> streams{};
        for (std::size_t k = 0; k < together; ++k) {
            streams[k] = &*encoders_[k];
            streams[k]->start(1, values);
        }
        const std::size_t step = source_.is_in_place() ? values : tile;
        for (std::size_t end = values; end > 0;) {
            const std::size_t here = (end - 1) % step + 1;  // only the last part may be shorter
            end -= here;
            add(i * stream_values + end, here, std::span(streams).first(together), plane);
        }
    }

    const stream::Encoder& operator[](std::size_t k) const { return *encoders_[k]; }

  private:
    void add(std::size_t first, std::size_t count, std::span<stream::Encoder* const> streams,
             std::byte* plane) {
        std::array<const std::byte*, rans::max_together> values{};
        std::array<std::uint8_t*, rans::max_together> others{};
        for (std::size_t k = 0; k < streams.size(); ++k) {
            values[k] = source_.at(first + k * stream_values, count, k);
            others[k] = reinterpret_cast<std::uint8_t*>(plane + first + k * stream_values);
        }
        stream::Encoder::add_values(count, streams, values.data(), others.data());
    }

    Source source_;
    std::size_t count_;
    std::array<std::optional<stream::Encoder>, rans::max_together> encoders_;
};

// Returns nothing if the coded form is not smaller than `limit` bytes.
std::optional<Encoded> encode_coded(const std::byte* data, DType dtype, std::size_t count, std::byte* payload,
                                    std::size_t limit, const Execution& execution, Arena& memory) {
    const stream::SymbolTable table = stream::build_table(count_exponents(data, dtype, count));
    std::array<std::byte, 1 + stream::largest_table_bytes> head_memory{coded};
    const std::span head(head_memory.data(), 1 + stream::write_table(table, head_memory.data() + 1));
    const std::size_t streams = streams_of(count);
    std::size_t size = head.size() + count + directory_bytes(streams);
    if (size >= limit) return std::nullopt;
    std::copy(head.begin(), head.end(), payload);
    std::byte* plane = payload + head.size();
    std::byte* directory = plane + count;
    const stream::Tables tables(table, memory.take<rans::Table>(1));
    Encoding encoding(tables, data, dtype, count, memory);
    Checksum checksum;
    for (std::size_t i = 0; i < streams; i += together_at(i, count)) {
        throw_if_stopped(execution);
        const std::size_t together = together_at(i, count);
        encoding.encode(i, together, plane);
        const std::size_t first = i * stream_values;
        checksum.add_plane({plane + first, std::min(together * stream_values, count - first)});
        for (std::size_t k = 0; k < together; ++k) {
            const auto bytes = static_cast<std::uint32_t>(encoding[k].size());
            if (size + bytes >= limit) return std::nullopt;
            encoding[k].finish(payload + size);
            checksum.add_streams({payload + size, bytes});
            if (streams > 1) std::memcpy(directory + 4 * (i + k), &bytes, 4);
            size += bytes;
        }
    }
    return Encoded{size, checksum.finish(crc32c(head), {directory, directory_bytes(streams)})};
}

void store_values(std::byte* data, DType dtype, std::size_t count, const std::byte* values) {
    if (dtype == DType::bfloat16)
        std::memcpy(data, values, 2 * count);
    else
        kernels::active().convert->from_bf16[static_cast<std::size_t>(dtype)](values, count, data);
}

// The parts of a coded payload.
struct Parts {
    stream::SymbolTable table;
    std::span<const std::byte> plane;
    std::span<const std::byte> directory;
    std::span<const std::span<const std::byte>> streams;
};

Parts take_apart(std::span<const std::byte> rest, std::size_t count, Arena& memory) {
    Parts parts{.table = stream::take_table(rest), .plane = {}, .directory = {}, .streams = {}};
    const std::size_t streams = streams_of(count);
    const std::size_t directory = directory_bytes(streams);
    if (rest.size() < count + directory)
        throw CorruptFrameError("frame has " + std::to_string(rest.size()) +
                                " bytes for signs, mantissas and lengths of streams, they need " +
                                std::to_string(count + directory));
    parts.plane = rest.first(count);
    parts.directory = rest.subspan(count, directory);
    rest = rest.subspan(count + directory);
    auto* found = memory.take<std::span<const std::byte>>(streams);
    parts.streams = {found, streams};
    for (std::size_t i = 0; i < streams; ++i) {
        auto bytes = static_cast<std::uint32_t>(rest.size());
        if (streams > 1) std::memcpy(&bytes, parts.directory.data() + 4 * i, 4);
        if (bytes > rest.size() || (i + 1 == streams && bytes != rest.size()))
            throw CorruptFrameError("frame has a stream of " + std::to_string(bytes) + " bytes where " +
                                    std::to_string(rest.size()) + " are left");
        std::construct_at(found + i, rest.first(bytes));
        rest = rest.subspan(bytes);
    }
    return parts;
}

// Decodes the streams of one payload, several at a time.
class Decoding {
  public:
    Decoding(const Parts& parts, std::size_t count, DType dtype, std::byte* data, Arena& memory)
        : parts_(parts),
          count_(count),
          tables_(parts.table, memory.take<rans::Table>(1)),
          dtype_(dtype),
          data_(data),
          memory_(memory) {}

    // Decodes `together` streams of equal length starting at `i` and adds them to the checksum.
    void decode(std::size_t i, std::size_t together) {
        std::array<std::optional<stream::Decoder>, rans::max_together> decoders;
        std::array<stream::Decoder*, rans::max_together> streams{};
        for (std::size_t k = 0; k < together; ++k) streams[k] = &open(decoders[k], i + k);
        const std::size_t values = values_of_stream(count_, i);
        const std::size_t step = dtype_ == DType::bfloat16 ? values : tile;
        for (std::size_t at = 0; at < values; at += step)
            next(i * stream_values + at, std::min(step, values - at), std::span(streams).first(together));
        for (std::size_t k = 0; k < together; ++k) streams[k]->finish();
        add(i, together);
    }

    const Checksum& checksum() const { return checksum_; }

  private:
    // Called after decoding, whose arithmetic hides the latency of loading these bytes.
    void add(std::size_t i, std::size_t streams) {
        const std::size_t first = i * stream_values;
        checksum_.add_plane(parts_.plane.subspan(first, std::min(streams * stream_values, count_ - first)));
        for (std::size_t k = i; k < i + streams; ++k) checksum_.add_streams(parts_.streams[k]);
    }

    // Decodes `count` values of each stream, those of the first stream starting at `first`.
    void next(std::size_t first, std::size_t count, std::span<stream::Decoder* const> streams) {
        std::array<const std::uint8_t*, rans::max_together> others{};
        std::array<std::byte*, rans::max_together> values{};
        const auto start = [&](std::size_t k) { return first + k * stream_values; };
        for (std::size_t k = 0; k < streams.size(); ++k) {
            others[k] = reinterpret_cast<const std::uint8_t*>(parts_.plane.data() + start(k));
            values[k] = dtype_ == DType::bfloat16 ? data_ + 2 * start(k) : converted_[k].data();
        }
        stream::Decoder::next_values(count, streams, others.data(), values.data());
        if (dtype_ == DType::bfloat16) return;
        for (std::size_t k = 0; k < streams.size(); ++k)
            store_values(data_ + start(k) * item_bytes(dtype_), dtype_, count, values[k]);
    }

    stream::Decoder& open(std::optional<stream::Decoder>& decoder, std::size_t i) const {
        const std::span<const std::byte> bytes = parts_.streams[i];
        const std::byte* end = parts_.streams.back().data() + parts_.streams.back().size();
        return decoder.emplace(tables_, bytes, static_cast<std::size_t>(end - bytes.data()), 1,
                               values_of_stream(count_, i), memory_);
    }

    const Parts& parts_;
    std::size_t count_;
    stream::Tables tables_;
    DType dtype_;
    std::byte* data_;
    Arena& memory_;
    Checksum checksum_;
    std::array<std::byte, 2 * tile> converted_[rans::max_together];
};

}  // namespace

std::size_t encode_memory_bytes(std::size_t count) {
    if (count == 0) return 0;
    return Arena::padded(sizeof(rans::Table)) +
           together_at(0, count) * stream::Encoder::memory_bytes(1, values_of_stream(count, 0));
}

std::size_t decode_memory_bytes(std::size_t count) {
    if (count == 0) return 0;
    return Arena::padded(sizeof(rans::Table)) +
           Arena::padded(streams_of(count) * sizeof(std::span<const std::byte>)) +
           stream::Decoder::memory_bytes(stream::bound(1, values_of_stream(count, 0)));
}

Encoded encode(const std::byte* data, DType dtype, std::size_t count, std::byte* payload,
               const Execution& execution, Arena& memory) {
    if (count == 0) return {0, 0};
    if (const auto encoded =
            encode_coded(data, dtype, count, payload, largest_payload(count), execution, memory))
        return *encoded;
    Source source(data, dtype);
    payload[0] = stored;
    for (std::size_t first = 0; first < count; first += tile) {
        const std::size_t here = std::min(tile, count - first);
        std::memcpy(payload + 1 + 2 * first, source.at(first, here), 2 * here);
    }
    return {largest_payload(count), crc32c({payload, largest_payload(count)})};
}

std::uint32_t decode(std::span<const std::byte> payload, DType dtype, std::size_t count, std::byte* data,
                     std::uint32_t header_checksum, const Execution& execution, Arena& memory) {
    if (count == 0) return header_checksum;
    const std::byte form = payload[0];
    if (form == stored) {
        if (payload.size() != largest_payload(count))
            throw CorruptFrameError("frame has " + std::to_string(payload.size()) +
                                    " bytes of stored values, they need " +
                                    std::to_string(largest_payload(count)));
        store_values(data, dtype, count, payload.data() + 1);
        return crc32c(payload, header_checksum);
    }
    if (form != coded)
        throw CorruptFrameError("frame has values in form " + std::to_string(std::to_integer<int>(form)) +
                                ", this reader knows 0 and 1");
    const Parts parts = take_apart(payload.subspan(1), count, memory);
    Decoding decoding(parts, count, dtype, data, memory);
    for (std::size_t i = 0; i < parts.streams.size(); i += together_at(i, count)) {
        throw_if_stopped(execution);
        decoding.decode(i, together_at(i, count));
    }
    const std::span<const std::byte> head(payload.data(), parts.plane.data());
    return decoding.checksum().finish(crc32c(head, header_checksum), parts.directory);
}

}  // namespace orbitsplit::lossless
