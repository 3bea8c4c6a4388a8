// One symbol of the stream coder, for the scalar kernels and for what is left over of vectors. All in an anonymous
// namespace, so that each file has its own copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/kernels/rans.hpp"

namespace orbitsplit::kernels {

namespace {

// Write positions, separate from the states so that they stay in registers.
struct Ends {
    std::uint8_t* next;
    std::uint8_t* escape;
};

// Returns the next state. Whether a state emits a byte is unpredictable, so there is no branch: the byte is always
// written and overwritten later if it was not emitted. Escapes are rare.
inline std::uint32_t encode_symbol(const rans::Table& table, std::uint8_t symbol, std::uint32_t state,
                                   Ends& ends) {
    const std::uint32_t entry = table.symbol_entry[symbol];
    const std::uint32_t frequency = entry & 0xFF;
    const std::uint32_t start = entry >> 8 & 0xFF;
    if (start == 0) [[unlikely]]
        *--ends.escape = symbol;
    const bool is_high = state >= frequency << 8;
    ends.next[-1] = static_cast<std::uint8_t>(state);
    ends.next -= is_high;
    const std::uint32_t x = is_high ? state >> 8 : state;
    // The inverse is rounded down: the quotient is exact or one too small.
    const std::uint32_t guess = (x * (entry >> 16)) >> 16;
    const std::uint32_t next = guess * (256 - frequency) + x + start;
    const std::uint32_t left = x - guess * frequency;
    return left >= frequency ? next + 256 - frequency : next;
}

// Read positions.
struct Begins {
    const std::uint8_t* next;
    const std::uint8_t* escape;

    bool is_within(const rans::Decoder& decoder) const {
        return next <= decoder.next_end && escape <= decoder.escape_end;
    }
};

// Reads at most one refill byte and one escaped symbol; slack_bytes covers the lanes of a step. Whether a state is
// refilled is unpredictable, so there is no branch; escapes are rare.
inline std::uint8_t decode_symbol(const rans::Table& table, std::uint16_t& state, Begins& begins) {
    const std::uint32_t entry = table.slot_entry[state & 0xFFU];
    const std::uint32_t x = (entry & 0xFF) * (state >> 8U) + (entry >> 8 & 0xFF);
    const std::uint32_t refilled = x << 8 | *begins.next;
    const bool is_low = x < rans::lowest_state;
    state = static_cast<std::uint16_t>(is_low ? refilled : x);
    begins.next += is_low;
    if ((entry >> 16 & 1) != 0) [[unlikely]]
        return *begins.escape++;
    return static_cast<std::uint8_t>(entry >> 24);
}

}  // namespace

}  // namespace orbitsplit::kernels
