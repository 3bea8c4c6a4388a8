#include "codec/entropy/stream.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "codec/kernels/dispatch.hpp"
#include "orbitsplit/error.hpp"

namespace orbitsplit::stream {

namespace {

// Size of the varint that counts the escaped symbols.
std::size_t varint_bytes(std::size_t value) {
    std::size_t bytes = 1;
    for (; value >= 128; value >>= 7) ++bytes;
    return bytes;
}

std::byte* put_varint(std::size_t value, std::byte* out) {
    for (; value >= 128; value >>= 7) *out++ = static_cast<std::byte>(value | 128);
    *out++ = static_cast<std::byte>(value);
    return out;
}

// Trailing zero bytes are rejected, so that every number has a single encoding.
std::size_t take_varint(std::span<const std::byte>& bytes) {
    std::size_t value = 0;
    for (std::size_t i = 0; i < std::min<std::size_t>(bytes.size(), 9); ++i) {
        const auto byte = std::to_integer<std::size_t>(bytes[i]);
        value |= (byte & 127) << (7 * i);
        if (byte >= 128) continue;
        if (byte == 0 && i > 0) break;
        bytes = bytes.subspan(i + 1);
        return value;
    }
    throw CorruptFrameError("frame has a stream without a count of escaped symbols");
}

// In a short last group the lanes of the missing rows are idle; a stream of fewer than 64 rows is one group.
rans::Steps steps_of_group(const Tables& tables, std::size_t rows, std::size_t channels, std::size_t group) {
    const std::size_t here = rows_of_group(rows, group);
    return tables.steps(0, channels, here, rows < group_rows ? lanes_of(rows, channels) : here);
}

[[noreturn]] void refuse_bytes() {
    throw CorruptFrameError("frame has a stream that its symbols do not end with");
}

}  // namespace

std::size_t lanes_of(std::size_t rows, std::size_t channels) {
    if (rows >= group_rows) return group_rows;
    std::size_t interleaved = 1;
    while (rows * interleaved * 2 <= rans::max_lanes && channels >= interleaved * 2 * 128) interleaved *= 2;
    return rows * interleaved;
}

std::size_t bound(std::size_t rows, std::size_t channels) {
    const std::size_t symbols = rows * channels;
    return varint_bytes(symbols) + 2 * lanes_of(rows, channels) + 2 * symbols;
}

Encoder::Encoder(const Tables& tables, std::size_t rows, std::size_t channels, Arena& memory)
    : tables_(&tables),
      capacity_(rows * channels + rans::slack_bytes),
      memory_(memory.take<std::uint8_t>(2 * capacity_)) {
    start(rows, channels);
}

std::size_t Encoder::memory_bytes(std::size_t rows, std::size_t channels) {
    return Arena::padded(2 * (rows * channels + rans::slack_bytes));
}

void Encoder::start(std::size_t rows, std::size_t channels) {
    rows_ = rows;
    channels_ = channels;
    std::ranges::fill(encoder_.state, rans::lowest_state);
    encoder_.next = memory_ + capacity_;
    encoder_.escape = memory_ + 2 * capacity_;
}

void Encoder::add_group(std::size_t group, const std::uint8_t* codes) {
    Encoder* const self = this;
    add_group(group, {&self, 1}, &codes);
}

std::array<rans::Encoder*, rans::max_together> Encoder::encoders_of(std::span<Encoder* const> streams) {
    std::array<rans::Encoder*, rans::max_together> encoders{};
    for (std::size_t k = 0; k < streams.size(); ++k) encoders[k] = &streams[k]->encoder_;
    return encoders;
}

void Encoder::add_group(std::size_t group, std::span<Encoder* const> streams,
                        const std::uint8_t* const* codes) {
    const Encoder& like = *streams.front();
    kernels::active().rans->encode(steps_of_group(*like.tables_, like.rows_, like.channels_, group),
                                   streams.size(), codes, encoders_of(streams).data());
}

void Encoder::add_values(std::size_t count, std::span<Encoder* const> streams, const std::byte* const* values,
                         std::uint8_t* const* others) {
    const Encoder& like = *streams.front();
    const rans::Steps steps = like.tables_->steps(0, count, 1, lanes_of(1, like.channels_));
    kernels::active().rans->encode_values(steps, streams.size(), values, others, encoders_of(streams).data());
}

std::size_t Encoder::refills() const { return static_cast<std::size_t>(memory_ + capacity_ - encoder_.next); }

std::size_t Encoder::escapes() const {
    return static_cast<std::size_t>(memory_ + 2 * capacity_ - encoder_.escape);
}

std::size_t Encoder::size() const {
    return varint_bytes(escapes()) + 2 * lanes_of(rows_, channels_) + refills() + escapes();
}

void Encoder::finish(std::byte* out) const {
    out = put_varint(escapes(), out);
    const std::size_t state_bytes = 2 * lanes_of(rows_, channels_);
    std::memcpy(out, encoder_.state, state_bytes);
    std::memcpy(out + state_bytes, encoder_.next, refills());
    std::memcpy(out + state_bytes + refills(), encoder_.escape, escapes());
}

Decoder::Decoder(const Tables& tables, std::span<const std::byte> bytes, std::size_t readable,
                 std::size_t rows, std::size_t channels, Arena& memory)
    : tables_(&tables), rows_(rows), channels_(channels) {
    if (readable < bytes.size() + rans::slack_bytes) {
        auto* copy = memory.take<std::byte>(bytes.size() + rans::slack_bytes);
        std::ranges::copy(bytes, copy);
        std::fill_n(copy + bytes.size(), rans::slack_bytes, std::byte{0});
        bytes = {copy, bytes.size()};
    }
    const std::size_t escapes = take_varint(bytes);
    const std::size_t state_bytes = 2 * lanes_of(rows, channels);
    if (escapes > bytes.size() || bytes.size() - escapes < state_bytes)
        throw CorruptFrameError("frame has a stream of " + std::to_string(bytes.size()) +
                                " bytes, its states and escaped symbols need " +
                                std::to_string(state_bytes + escapes));
    std::ranges::fill(decoder_.state, rans::lowest_state);
    std::memcpy(decoder_.state, bytes.data(), state_bytes);
    const auto* end = reinterpret_cast<const std::uint8_t*>(bytes.data() + bytes.size());
    decoder_.next = reinterpret_cast<const std::uint8_t*>(bytes.data() + state_bytes);
    decoder_.escape = decoder_.next_end = end - escapes;
    decoder_.escape_end = end;
}

std::array<rans::Decoder*, rans::max_together> Decoder::decoders_of(std::span<Decoder* const> streams) {
    std::array<rans::Decoder*, rans::max_together> decoders{};
    for (std::size_t k = 0; k < streams.size(); ++k) decoders[k] = &streams[k]->decoder_;
    return decoders;
}

void Decoder::next_group(std::size_t group, std::uint8_t* codes) {
    Decoder* const self = this;
    next_group(group, {&self, 1}, &codes);
}

void Decoder::next_group(std::size_t group, std::span<Decoder* const> streams, std::uint8_t* const* codes) {
    const Decoder& like = *streams.front();
    const rans::Steps steps = steps_of_group(*like.tables_, like.rows_, like.channels_, group);
    if (!kernels::active().rans->decode(steps, streams.size(), decoders_of(streams).data(), codes))
        refuse_bytes();
}

void Decoder::next_values(std::size_t count, std::span<Decoder* const> streams,
                          const std::uint8_t* const* others, std::byte* const* values) {
    const Decoder& like = *streams.front();
    const rans::Steps steps = like.tables_->steps(0, count, 1, lanes_of(1, like.channels_));
    if (!kernels::active().rans->decode_values(steps, streams.size(), decoders_of(streams).data(), others,
                                               values))
        refuse_bytes();
}

void Decoder::finish() const {
    const bool is_spent = decoder_.next == decoder_.next_end && decoder_.escape == decoder_.escape_end;
    const bool is_back =
        std::ranges::all_of(decoder_.state, [](std::uint16_t state) { return state == rans::lowest_state; });
    if (!is_spent || !is_back) refuse_bytes();
}

}  // namespace orbitsplit::stream
