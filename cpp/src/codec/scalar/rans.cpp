// The specification of the stream coder's steps.
#include "codec/kernels.hpp"

namespace orbitsplit::kernels::scalar {

namespace {

using rans::Decoder;
using rans::Encoder;
using rans::lowest_state;
using rans::Steps;
using rans::Table;

const Table& table_of(const Steps& steps, std::size_t channel) {
    return steps.tables[steps.table_of_channel == nullptr ? 0 : steps.table_of_channel[channel]];
}

// Where the next byte of each kind goes, apart from the states: these stay in registers.
struct Ends {
    std::uint8_t* next;
    std::uint8_t* escape;
};

// No branch here would be predictable, so there is none: a byte that is not needed is written all the same, and
// overwritten later.
void encode_symbol(const Table& table, std::uint8_t symbol, std::uint16_t& state, Ends& ends) {
    const std::uint32_t entry = table.symbol_entry[symbol];
    const std::uint32_t frequency = entry & 0xFF;
    const std::uint32_t start = entry >> 8 & 0xFF;
    ends.escape[-1] = symbol;
    ends.escape -= start == 0;
    std::uint32_t x = state;
    const unsigned is_high = x >= frequency << 8;
    ends.next[-1] = static_cast<std::uint8_t>(x);
    ends.next -= is_high;
    x = is_high != 0 ? x >> 8 : x;
    // The inverse is rounded down: the quotient is right or one too small.
    const std::uint32_t guess = (x * (entry >> 16)) >> 16;
    const std::uint32_t next = guess * (256 - frequency) + x + start;
    const std::uint32_t left = x - guess * frequency;
    state = static_cast<std::uint16_t>(left >= frequency ? next + 256 - frequency : next);
}

void encode(const Steps& steps, const std::uint8_t* codes, Encoder& encoder) {
    Ends ends{encoder.next, encoder.escape};
    std::size_t i = steps.channels * steps.rows;
    std::size_t lane = i > 0 ? (i - 1) % steps.lanes : 0;
    for (std::size_t channel = steps.channels; channel-- > 0;) {
        const Table& table = table_of(steps, channel);
        for (std::size_t row = steps.rows; row-- > 0;) {
            encode_symbol(table, codes[--i], encoder.state[lane], ends);
            lane = (lane == 0 ? steps.lanes : lane) - 1;
        }
    }
    encoder.next = ends.next;
    encoder.escape = ends.escape;
}

struct Begins {
    const std::uint8_t* next;
    const std::uint8_t* escape;

    bool is_within(const Decoder& decoder) const {
        return next <= decoder.next_end && escape <= decoder.escape_end;
    }
};

// Reads at most one byte of each kind, which slack_bytes allows for the lanes of a step.
std::uint8_t decode_symbol(const Table& table, std::uint16_t& state, Begins& begins) {
    const std::uint32_t entry = table.slot_entry[state & 0xFFU];
    const std::uint32_t x = (entry & 0xFF) * (state >> 8U) + (entry >> 8 & 0xFF);
    const unsigned is_low = x < lowest_state;
    state = static_cast<std::uint16_t>(x << (8 * is_low) | (*begins.next & (0U - is_low)));
    begins.next += is_low;
    const unsigned is_escape = entry >> 16 & 1;
    const unsigned symbol = entry >> 24 | (*begins.escape & (0U - is_escape));
    begins.escape += is_escape;
    return static_cast<std::uint8_t>(symbol);
}

bool decode(const Steps& steps, Decoder& decoder, std::uint8_t* codes) {
    Begins begins{decoder.next, decoder.escape};
    std::size_t lane = 0;
    for (std::size_t channel = 0; channel < steps.channels; ++channel) {
        const Table& table = table_of(steps, channel);
        for (std::size_t row = 0; row < steps.rows; ++row) {
            if (lane == 0 && !begins.is_within(decoder)) return false;
            *codes++ = decode_symbol(table, decoder.state[lane], begins);
            lane = lane + 1 == steps.lanes ? 0 : lane + 1;
        }
    }
    decoder.next = begins.next;
    decoder.escape = begins.escape;
    return begins.is_within(decoder);
}

bool decode_two(const Steps& steps, Decoder& first, std::uint8_t* first_codes, Decoder& second,
                std::uint8_t* second_codes) {
    return decode(steps, first, first_codes) && decode(steps, second, second_codes);
}

}  // namespace

const Rans rans = {encode, decode, decode_two};

}  // namespace orbitsplit::kernels::scalar
