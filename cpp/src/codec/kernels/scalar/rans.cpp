// The specification of the stream coder's steps.
#include <algorithm>
#include <array>

#include "codec/kernels/elements.hpp"
#include "codec/kernels/kernels.hpp"
#include "codec/kernels/scalar/symbols.hpp"

namespace orbitsplit::kernels::scalar {

namespace {

using rans::Decoder;
using rans::Encoder;
using rans::Steps;
using rans::Table;

// Passed by value, as read and write positions are: through a reference, the compiler must assume that every byte
// written may change them.
struct TableOf {
    const Table* tables;
    const std::uint8_t* index;  // by channel

    explicit TableOf(const Steps& steps) : tables(steps.tables), index(steps.table_of_channel) {}

    const Table& operator()(std::size_t channel) const {
        return tables[index == nullptr ? 0 : index[channel]];
    }
};

// One row in few lanes, as in a decode step: its states stay in registers, which shortens the dependency between the
// symbols of a lane.
template <std::size_t lanes>
Ends encode_row(TableOf table_of, std::size_t channels, const std::uint8_t* codes, std::uint16_t* states,
                Ends ends) {
    std::size_t channel = channels;
    while (channel % lanes != 0) {
        --channel;
        std::uint16_t& state = states[channel % lanes];
        state = static_cast<std::uint16_t>(encode_symbol(table_of(channel), codes[channel], state, ends));
    }
    std::array<std::uint32_t, lanes> state;
    std::copy_n(states, lanes, state.begin());
    while (channel > 0) {
        channel -= lanes;
        for (std::size_t lane = lanes; lane-- > 0;)
            state[lane] = encode_symbol(table_of(channel + lane), codes[channel + lane], state[lane], ends);
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) states[lane] = static_cast<std::uint16_t>(state[lane]);
    return ends;
}

Ends encode_rows(TableOf table_of, const Steps& steps, const std::uint8_t* codes, std::uint16_t* states,
                 Ends ends) {
    const std::size_t rows = steps.rows;
    const std::size_t lanes = steps.lanes;
    std::size_t i = steps.channels * rows;
    std::size_t lane = i > 0 ? (i - 1) % lanes : 0;
    for (std::size_t channel = steps.channels; channel-- > 0;) {
        const Table& table = table_of(channel);
        for (std::size_t row = rows; row-- > 0;) {
            states[lane] = static_cast<std::uint16_t>(encode_symbol(table, codes[--i], states[lane], ends));
            lane = (lane == 0 ? lanes : lane) - 1;
        }
    }
    return ends;
}

void encode_one(const Steps& steps, const std::uint8_t* codes, Encoder& encoder) {
    const TableOf table_of(steps);
    Ends ends{encoder.next, encoder.escape};
    if (steps.rows == 1 && steps.lanes == 4)
        ends = encode_row<4>(table_of, steps.channels, codes, encoder.state, ends);
    else if (steps.rows == 1 && steps.lanes == 8)
        ends = encode_row<8>(table_of, steps.channels, codes, encoder.state, ends);
    else
        ends = encode_rows(table_of, steps, codes, encoder.state, ends);
    encoder.next = ends.next;
    encoder.escape = ends.escape;
}

void encode(const Steps& steps, std::size_t streams, const std::uint8_t* const* codes,
            Encoder* const* encoders) {
    for (std::size_t k = 0; k < streams; ++k) encode_one(steps, codes[k], *encoders[k]);
}

// Returns whether what was read was there.
bool put_back(const Begins& begins, Decoder& decoder) {
    decoder.next = begins.next;
    decoder.escape = begins.escape;
    return begins.is_within(decoder);
}

template <std::size_t lanes>
bool decode_row(TableOf table_of, std::size_t channels, Decoder& decoder, std::uint8_t* codes) {
    Begins begins{decoder.next, decoder.escape};
    std::array<std::uint16_t, lanes> state;
    std::copy_n(decoder.state, lanes, state.begin());
    std::size_t channel = 0;
    for (; channel + lanes <= channels; channel += lanes) {
        if (!begins.is_within(decoder)) return false;
        for (std::size_t lane = 0; lane < lanes; ++lane)
            codes[channel + lane] = decode_symbol(table_of(channel + lane), state[lane], begins);
    }
    if (!begins.is_within(decoder)) return false;
    for (; channel < channels; ++channel)
        codes[channel] = decode_symbol(table_of(channel), state[channel % lanes], begins);
    std::ranges::copy(state, decoder.state);
    return put_back(begins, decoder);
}

bool decode_rows(TableOf table_of, const Steps& steps, Decoder& decoder, std::uint8_t* codes) {
    Begins begins{decoder.next, decoder.escape};
    const std::size_t channels = steps.channels;
    const std::size_t rows = steps.rows;
    const std::size_t lanes = steps.lanes;
    std::size_t lane = 0;
    for (std::size_t channel = 0; channel < channels; ++channel) {
        const Table& table = table_of(channel);
        for (std::size_t row = 0; row < rows; ++row) {
            if (lane == 0 && !begins.is_within(decoder)) return false;
            *codes++ = decode_symbol(table, decoder.state[lane], begins);
            lane = lane + 1 == lanes ? 0 : lane + 1;
        }
    }
    return put_back(begins, decoder);
}

bool decode_one(const Steps& steps, Decoder& decoder, std::uint8_t* codes) {
    const TableOf table_of(steps);
    if (steps.rows == 1 && steps.lanes == 4) return decode_row<4>(table_of, steps.channels, decoder, codes);
    if (steps.rows == 1 && steps.lanes == 8) return decode_row<8>(table_of, steps.channels, decoder, codes);
    return decode_rows(table_of, steps, decoder, codes);
}

bool decode(const Steps& steps, std::size_t streams, Decoder* const* decoders, std::uint8_t* const* codes) {
    for (std::size_t k = 0; k < streams; ++k)
        if (!decode_one(steps, *decoders[k], codes[k])) return false;
    return true;
}

// The exponents of a block of values.
using Exponents = std::array<std::uint8_t, 1024>;

std::uint8_t other_bits(const std::byte* values, std::size_t i) {
    const unsigned bits = elements::load<std::uint16_t>(values, i);
    return static_cast<std::uint8_t>((bits >> 8 & 0x80) | (bits & 0x7F));
}

void merge(const std::uint8_t* exponents, const std::uint8_t* others, std::size_t count, std::byte* out) {
    for (std::size_t i = 0; i < count; ++i) {
        const unsigned bits = exponents[i] << 7U | (others[i] & 0x80U) << 8U | (others[i] & 0x7FU);
        elements::store(out, i, static_cast<std::uint16_t>(bits));
    }
}

void encode_values(const Steps& steps, std::size_t streams, const std::byte* const* values,
                   std::uint8_t* const* others, Encoder* const* encoders) {
    Exponents exponents;
    for (std::size_t k = 0; k < streams; ++k) {
        Steps part = steps;
        for (std::size_t end = steps.channels; end > 0; end -= part.channels) {
            part.channels = (end - 1) % exponents.size() + 1;  // only the last part may be shorter
            const std::size_t first = end - part.channels;
            planes.exponents(values[k] + 2 * first, part.channels, exponents.data());
            for (std::size_t i = first; i < end; ++i) others[k][i] = other_bits(values[k], i);
            encode_one(part, exponents.data(), *encoders[k]);
        }
    }
}

bool decode_values(const Steps& steps, std::size_t streams, Decoder* const* decoders,
                   const std::uint8_t* const* others, std::byte* const* values) {
    Exponents exponents;
    for (std::size_t k = 0; k < streams; ++k) {
        Steps part = steps;
        for (std::size_t first = 0; first < steps.channels; first += part.channels) {
            part.channels = std::min(exponents.size(), steps.channels - first);
            if (!decode_one(part, *decoders[k], exponents.data())) return false;
            merge(exponents.data(), others[k] + first, part.channels, values[k] + 2 * first);
        }
    }
    return true;
}

}  // namespace

constinit const Rans rans = {encode, decode, encode_values, decode_values};

}  // namespace orbitsplit::kernels::scalar
