// What the kernels of the stream coder work on (stream.hpp says what it is): plain data.
#pragma once

#include <cstddef>
#include <cstdint>

namespace orbitsplit::rans {

inline constexpr std::size_t max_lanes = 64;

// Kernels move 64 bytes at a time: so many bytes beyond what they read, and below what they write, are theirs.
inline constexpr std::size_t slack_bytes = 64;

inline constexpr std::uint16_t lowest_state = 256;

// Streams that kernels take at once.
inline constexpr std::size_t max_together = 4;

inline constexpr std::size_t most_places = 64;

// A table of at most 63 coded symbols, as those of exponents and of codes are: each has a place, in order, and the last
// place is the escape's. What the table says of a place fits into one register.
struct alignas(64) Places {
    std::uint8_t place_of_slot[256];  // with the highest bit set for an escape
    std::uint8_t place_of_symbol[256];
    std::uint8_t symbol[most_places];  // by place, as all that follows
    std::uint8_t frequency[most_places];
    std::uint8_t start[most_places];
    std::uint8_t inverse_low[most_places];
    std::uint8_t inverse_high[most_places];
};

// One table of symbols, ready for both directions. A symbol without a frequency has the escape's entries.
struct alignas(64) Table {
    std::uint8_t symbol_of[256];     // by slot; an escape's is 0
    std::uint8_t frequency_of[256];  // by slot
    std::uint8_t rank_of[256];       // by slot: slots of the same symbol before it
    std::uint8_t frequency[256];     // by symbol, as all that follows
    std::uint8_t start[256];         // first slot; 0 means escape
    std::uint8_t inverse_low[256];   // min(65535, 65536 / frequency)
    std::uint8_t inverse_high[256];
    std::uint8_t escape_slots;  // the escape has the slots below this

    // The same as one number each, for one lookup at a time: frequency, rank, 1 for an escape, symbol; and
    // frequency, start, inverse in the high half.
    std::uint32_t slot_entry[256];
    std::uint32_t symbol_entry[256];

    Places places;
};

// Symbols in the order they are coded: `rows` of each channel, channel after channel, `lanes` to a step.
struct Steps {
    const Table* tables;
    const std::uint8_t* table_of_channel;  // null: all have tables[0]
    std::size_t channels;
    std::size_t rows;
    std::size_t lanes;
    bool have_places;  // all tables
};

struct Decoder {
    alignas(64) std::uint16_t state[max_lanes];
    const std::uint8_t* next;    // of the bytes that refill states, up to next_end
    const std::uint8_t* escape;  // of the bytes of escaped symbols, up to escape_end
    const std::uint8_t* next_end;
    const std::uint8_t* escape_end;
};

// Writes downwards: `next` and `escape` are the lowest bytes written so far.
struct Encoder {
    alignas(64) std::uint16_t state[max_lanes];
    std::uint8_t* next;
    std::uint8_t* escape;
};

}  // namespace orbitsplit::rans
