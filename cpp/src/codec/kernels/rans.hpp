// The data that the kernels of the stream coder (entropy/stream.hpp) work on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace orbitsplit::rans {

inline constexpr std::size_t max_lanes = 64;

// Kernels move 64 bytes at a time: up to this many bytes beyond what they read and before what they write must be
// accessible.
inline constexpr std::size_t slack_bytes = 64;

inline constexpr std::uint16_t lowest_state = 256;

// Streams that a kernel processes interleaved.
inline constexpr std::size_t max_together = 4;

inline constexpr std::size_t compact_entries = 64;

// A table of at most 63 coded symbols, which those of exponents and of codes usually have: each symbol has an entry, in
// order, and the last entry is the escape's. A field of all entries fits one 512-bit register.
struct alignas(64) CompactTable {
    std::uint8_t entry_of_slot[256];  // with the highest bit set for an escape
    std::uint8_t entry_of_symbol[256];
    std::uint8_t symbol[compact_entries];  // by entry, as are the following
    std::uint8_t frequency[compact_entries];
    std::uint8_t start[compact_entries];
    std::uint8_t inverse_low[compact_entries];
    std::uint8_t inverse_high[compact_entries];
};

// A table of symbols prepared for encoding and decoding. A symbol without a frequency has the escape's values.
struct alignas(64) Table {
    std::uint8_t symbol_of[256];     // by slot; an escape's is 0
    std::uint8_t frequency_of[256];  // by slot
    std::uint8_t rank_of[256];       // by slot: slots of the same symbol before it
    std::uint8_t frequency[256];     // by symbol, as are the following
    std::uint8_t start[256];         // first slot; 0 means escape
    std::uint8_t inverse_low[256];   // min(65535, 65536 / frequency)
    std::uint8_t inverse_high[256];
    std::uint8_t escape_slots;  // the escape has all slots below this

    // The same packed into one word for scalar lookups, from the lowest byte: frequency, rank, 1 for an escape, symbol;
    // and frequency, start, inverse in the upper half.
    std::uint32_t slot_entry[256];
    std::uint32_t symbol_entry[256];

    CompactTable compact;
};

// Symbols in coding order: `rows` of each channel, channel after channel, `lanes` in each step.
struct Steps {
    const Table* tables;
    const std::uint8_t* table_of_channel;  // null: all have tables[0]
    std::size_t channels;
    std::size_t rows;
    std::size_t lanes;
    bool are_compact;  // all tables have a CompactTable
};

struct Decoder {
    alignas(64) std::uint16_t state[max_lanes];
    const std::uint8_t* next;    // of the bytes that refill states, up to next_end
    const std::uint8_t* escape;  // of the bytes of escaped symbols, up to escape_end
    const std::uint8_t* next_end;
    const std::uint8_t* escape_end;
};

// Writes downwards: `next` and `escape` point to the lowest bytes written so far.
struct Encoder {
    alignas(64) std::uint16_t state[max_lanes];
    std::uint8_t* next;
    std::uint8_t* escape;
};

}  // namespace orbitsplit::rans
