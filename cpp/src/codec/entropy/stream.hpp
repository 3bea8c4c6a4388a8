// The stream coder: codes bytes of known statistics in little more than their entropy (docs/internals/frame_format.md,
// "Streams"). Interleaved rANS with probabilities of 8 bits and states of 16 bits.
//
// Symbols are bytes of a matrix [rows, channels], each channel with one of up to 64 frequency tables. A stream holds
// up to 256 rows, in groups of 64. A group is passed channel by channel: codes[channel * rows of the group + row]; a
// single row is thus passed unchanged.
//
// Symbols too rare for a table are escaped. The coder accepts every symbol, but a stream may become longer than its
// symbols: callers with a shorter form compare the sizes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/kernels/rans.hpp"
#include "support/aligned.hpp"
#include "support/workspace.hpp"

namespace orbitsplit::stream {

inline constexpr std::size_t max_rows = 256;
inline constexpr std::size_t group_rows = 64;
inline constexpr std::size_t max_tables = 64;

// Frequencies in 256ths. With the escape's, which is at least 1, they add up to 256.
struct SymbolTable {
    std::array<std::uint8_t, 256> frequency{};
    std::uint8_t escape = 0;

    bool operator==(const SymbolTable&) const = default;
};

bool is_valid(const SymbolTable& table);

// The table that codes symbols with these counts (in total below 2^40) in the fewest bits, by an integer rule that
// every implementation follows. If all counts are 0, that for symbols that are all 0.
SymbolTable build_table(std::span<const std::uint64_t, 256> counts);

inline constexpr std::size_t largest_table_bytes = 3 + 256;

// Serialises a table: first and last symbol with a frequency, the escape's frequency, the frequencies in between. Returns
// its size; `out` has room for largest_table_bytes.
std::size_t write_table(const SymbolTable& table, std::byte* out);

// Parses one table and removes it from the front of `bytes`. Throws CorruptFrameError.
SymbolTable take_table(std::span<const std::byte>& bytes);

// Prepared tables, and the table of each channel. Immutable: threads may share it.
class Tables {
  public:
    // One table for all channels, any number of them.
    explicit Tables(const SymbolTable& table) : Tables(std::span(&table, 1), {}) {}
    // The same with the prepared table in memory of the caller, which must exist as long as this.
    Tables(const SymbolTable& table, rans::Table* memory);
    // Throws std::invalid_argument for an invalid table, no table or more than 64, or a channel whose table does not
    // exist.
    Tables(std::span<const SymbolTable> tables, std::span<const std::uint8_t> table_of_channel);

    // Steps of `lanes` symbols for `channels` channels of `rows` rows, starting at channel `first`.
    rans::Steps steps(std::size_t first, std::size_t channels, std::size_t rows, std::size_t lanes) const;

  private:
    AlignedVector<rans::Table> owned_;
    const rans::Table* borrowed_ = nullptr;
    std::vector<std::uint8_t> table_of_channel_;
    bool are_compact_;
};

// The number of states of a stream, that is of symbols in a step.
std::size_t lanes_of(std::size_t rows, std::size_t channels);

// Rows of a group; the groups of a stream are 0, 1 ... (rows - 1) / 64.
inline std::size_t rows_of_group(std::size_t rows, std::size_t group) {
    const std::size_t left = rows - group * group_rows;
    return left < group_rows ? left : group_rows;
}

// Upper bound on the bytes of a stream.
std::size_t bound(std::size_t rows, std::size_t channels);

// Encodes streams of at most the given size, one after another.
class Encoder {
  public:
    // `memory` is not given back as long as this is used.
    Encoder(const Tables& tables, std::size_t rows, std::size_t channels, Arena& memory);

    // What that takes of the memory.
    static std::size_t memory_bytes(std::size_t rows, std::size_t channels);

    // Starts a stream of at most that size.
    void start(std::size_t rows, std::size_t channels);
    // Adds the groups from the last to the first. 64 bytes beyond the end of `codes` must be readable.
    void add_group(std::size_t group, const std::uint8_t* codes);
    // The same for up to rans::max_together streams of equal size and tables, interleaved: faster than one after
    // another.
    static void add_group(std::size_t group, std::span<Encoder* const> streams,
                          const std::uint8_t* const* codes);
    // For streams of one row whose symbols are the exponents of bfloat16 values. Values may be passed in parts, from
    // the last to the first; the size of all parts but the last one of the row is a multiple of 64. Their other bits
    // (sign and mantissa) are written to `others`.
    static void add_values(std::size_t count, std::span<Encoder* const> streams,
                           const std::byte* const* values, std::uint8_t* const* others);
    // Size of the finished stream, and the stream itself.
    std::size_t size() const;
    void finish(std::byte* out) const;

  private:
    static std::array<rans::Encoder*, rans::max_together> encoders_of(std::span<Encoder* const> streams);
    std::size_t refills() const;
    std::size_t escapes() const;

    const Tables* tables_;
    std::size_t rows_;
    std::size_t channels_;
    std::size_t capacity_;  // of each half of the memory
    // Refills of states, growing downwards from the end of the first half; escaped symbols, the same in the second.
    std::uint8_t* memory_;
    rans::Encoder encoder_;
};

// Decodes one stream. Throws CorruptFrameError if the bytes are not a valid stream of this size.
class Decoder {
  public:
    // `readable` bytes from the start of the stream may be read; if that is less than 64 beyond its end, it is copied
    // into `memory`, which is not given back as long as this is used.
    Decoder(const Tables& tables, std::span<const std::byte> bytes, std::size_t readable, std::size_t rows,
            std::size_t channels, Arena& memory);
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    // What streams of at most `bytes` bytes take of the memory, as many of them as end less than 64 bytes before their
    // frame does: the last one and, if that has fewer bytes, the one before it.
    static std::size_t memory_bytes(std::size_t bytes) {
        return 2 * Arena::padded(bytes + rans::slack_bytes);
    }

    // Decodes the groups from the first to the last. 64 bytes beyond the end of `codes` must be writable.
    void next_group(std::size_t group, std::uint8_t* codes);
    // The same for up to rans::max_together streams of equal size and tables, interleaved: faster than one after
    // another.
    static void next_group(std::size_t group, std::span<Decoder* const> streams, std::uint8_t* const* codes);
    // The reverse of Encoder::add_values, in parts from the first to the last.
    static void next_values(std::size_t count, std::span<Decoder* const> streams,
                            const std::uint8_t* const* others, std::byte* const* values);
    // Checks that every byte was used and every state has returned to the encoder's initial state.
    void finish() const;

  private:
    static std::array<rans::Decoder*, rans::max_together> decoders_of(std::span<Decoder* const> streams);

    const Tables* tables_;
    std::size_t rows_;
    std::size_t channels_;
    rans::Decoder decoder_;
};

}  // namespace orbitsplit::stream
