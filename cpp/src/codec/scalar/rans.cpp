// The specification of the stream coder's steps.
#include "codec/kernels.hpp"

namespace orbitsplit::kernels::scalar {

namespace {

using rans::Decoder;
using rans::Encoder;
using rans::lowest_state;
using rans::Steps;
using rans::Table;

const Table& table_of(const Steps& steps, std::size_t position) {
    return steps
        .tables[steps.table_of_channel == nullptr ? 0 : steps.table_of_channel[position / steps.rows]];
}

void encode_symbol(const Table& table, std::uint8_t symbol, std::uint16_t& state, Encoder& encoder) {
    const std::uint32_t frequency = table.frequency[symbol];
    const std::uint32_t start = table.start[symbol];
    if (start == 0) *--encoder.escape = symbol;
    std::uint32_t x = state;
    if (x >= frequency << 8) {
        *--encoder.next = static_cast<std::uint8_t>(x);
        x >>= 8;
    }
    // The inverse is rounded down: the quotient is right or one too small.
    const std::uint32_t inverse = table.inverse_low[symbol] | std::uint32_t{table.inverse_high[symbol]} << 8;
    std::uint32_t quotient = (x * inverse) >> 16;
    std::uint32_t rest = x - quotient * frequency;
    const bool is_small = rest >= frequency;
    quotient += is_small;
    rest -= is_small ? frequency : 0;
    state = static_cast<std::uint16_t>(quotient << 8 | (rest + start));
}

void encode(const Steps& steps, const std::uint8_t* codes, Encoder& encoder) {
    const std::size_t count = steps.channels * steps.rows;
    std::size_t lane = count % steps.lanes;
    for (std::size_t i = count; i-- > 0;) {
        lane = (lane == 0 ? steps.lanes : lane) - 1;
        encode_symbol(table_of(steps, i), codes[i], encoder.state[lane], encoder);
    }
}

// Reads at most one byte of each kind, which slack_bytes allows for the lanes of a step.
std::uint8_t decode_symbol(const Table& table, std::uint16_t& state, Decoder& decoder) {
    const std::uint32_t slot = state & 0xFFU;
    std::uint32_t x = table.frequency_of[slot] * (state >> 8U) + table.rank_of[slot];
    const bool is_low = x < lowest_state;
    x = is_low ? x << 8 | *decoder.next : x;
    decoder.next += is_low;
    state = static_cast<std::uint16_t>(x);
    const bool is_escape = slot < table.escape_slots;
    const std::uint8_t symbol = is_escape ? *decoder.escape : table.symbol_of[slot];
    decoder.escape += is_escape;
    return symbol;
}

bool is_within(const Decoder& decoder) {
    return decoder.next <= decoder.next_end && decoder.escape <= decoder.escape_end;
}

bool decode(const Steps& steps, Decoder& decoder, std::uint8_t* codes) {
    const std::size_t count = steps.channels * steps.rows;
    for (std::size_t first = 0; first < count; first += steps.lanes) {
        if (!is_within(decoder)) return false;
        const std::size_t lanes = steps.lanes < count - first ? steps.lanes : count - first;
        for (std::size_t lane = 0; lane < lanes; ++lane)
            codes[first + lane] = decode_symbol(table_of(steps, first + lane), decoder.state[lane], decoder);
    }
    return is_within(decoder);
}

bool decode_two(const Steps& steps, Decoder& first, std::uint8_t* first_codes, Decoder& second,
                std::uint8_t* second_codes) {
    return decode(steps, first, first_codes) && decode(steps, second, second_codes);
}

}  // namespace

const Rans rans = {encode, decode, decode_two};

}  // namespace orbitsplit::kernels::scalar
