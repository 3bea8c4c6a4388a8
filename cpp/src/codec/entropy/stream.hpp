// The stream coder: bytes of known statistics in little more than their entropy (docs/internals/frame_format.md,
// "Streams"). Interleaved rANS with probabilities of 8 bits and states of 16 bits.
//
// Symbols are bytes of a matrix [rows, channels], each channel with one of up to 64 tables of frequencies. A
// stream holds up to 256 rows, in groups of 64. A group is handed over channel by channel: codes[channel *
// rows of the group + row]; a single row is therefore handed over as it is.
//
// Symbols too rare for a table are escaped. The coder never fails on a symbol, but a stream may then be longer
// than its symbols: whoever knows a shorter form compares the sizes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "codec/kernels/rans.hpp"

namespace orbitsplit::stream {

inline constexpr std::size_t max_rows = 256;
inline constexpr std::size_t group_rows = 64;
inline constexpr std::size_t max_tables = 64;

// Frequencies in 256ths; with the escape's, which is at least 1, they add up to 256.
struct SymbolTable {
    std::array<std::uint8_t, 256> frequency{};
    std::uint8_t escape = 0;

    bool operator==(const SymbolTable&) const = default;
};

bool is_valid(const SymbolTable& table);

// The table that codes symbols with these counts (below 2^40 in all) in the fewest bits, by an integer rule that every
// implementation follows. Without any count it is that of zeros.
SymbolTable build_table(std::span<const std::uint64_t, 256> counts);

// A table in bytes: first and last symbol with a frequency, the escape's frequency, the frequencies between.
void append_table(const SymbolTable& table, std::vector<std::byte>& out);

// Reads one table off the front of `bytes`. Throws CorruptFrameError.
SymbolTable take_table(std::span<const std::byte>& bytes);

// Tables made ready, and which of them each channel has. Never changes, so threads may share it.
class Tables {
  public:
    // One table for every channel, of any number of channels.
    explicit Tables(const SymbolTable& table);
    // Throws std::invalid_argument: an invalid table, more than 64 of them, a channel with one that is not there.
    Tables(std::span<const SymbolTable> tables, std::span<const std::uint8_t> table_of_channel);

    // Steps of `lanes` for `channels` channels from `first` on, of `rows` rows each.
    rans::Steps steps(std::size_t first, std::size_t channels, std::size_t rows, std::size_t lanes) const;

  private:
    std::vector<rans::Table> tables_;
    std::vector<std::uint8_t> table_of_channel_;
    bool have_places_;
};

// States of a stream: how many symbols are coded at once.
std::size_t lanes_of(std::size_t rows, std::size_t channels);

// Rows of a group; the groups of a stream are 0, 1 ... (rows - 1) / 64.
inline std::size_t rows_of_group(std::size_t rows, std::size_t group) {
    const std::size_t left = rows - group * group_rows;
    return left < group_rows ? left : group_rows;
}

// Bytes of a stream at most.
std::size_t bound(std::size_t rows, std::size_t channels);

// Encodes one stream after another, of at most the size it was made for.
class Encoder {
  public:
    Encoder(const Tables& tables, std::size_t rows, std::size_t channels);

    // Begins a stream of at most that size.
    void start(std::size_t rows, std::size_t channels);
    // Groups come from the last to the first. 64 bytes beyond the end of `codes` must be readable.
    void add_group(std::size_t group, const std::uint8_t* codes);
    // The same of up to rans::max_together streams of one size and the same tables: faster than one by one.
    static void add_group(std::size_t group, std::span<Encoder* const> streams,
                          const std::uint8_t* const* codes);
    // Streams of one row whose symbols are the exponents of bfloat16 values can be handed over in parts, from the last
    // to the first: so many values, a multiple of 64 but for the last part, whose other bytes (sign and mantissa) are
    // put aside.
    static void add_values(std::size_t count, std::span<Encoder* const> streams,
                           const std::byte* const* values, std::uint8_t* const* others);
    // Bytes of the finished stream, and the stream itself.
    std::size_t size() const;
    void finish(std::byte* out) const;

  private:
    static std::array<rans::Encoder*, rans::max_together> encoders_of(std::span<Encoder* const> streams);
    std::size_t refills() const;
    std::size_t escapes() const;

    const Tables* tables_;
    std::size_t rows_;
    std::size_t channels_;
    std::size_t capacity_;                    // of each of the two that share the memory
    std::unique_ptr<std::uint8_t[]> memory_;  // refills of states, from the end downwards; so escaped symbols
    rans::Encoder encoder_;
};

// Decodes one stream. Throws CorruptFrameError whenever the bytes are not those of a stream of this size.
class Decoder {
  public:
    // `readable` bytes from the beginning of the stream can be read, for fewer than 64 beyond it a copy is made.
    Decoder(const Tables& tables, std::span<const std::byte> bytes, std::size_t readable, std::size_t rows,
            std::size_t channels);
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    // Groups come from the first to the last. 64 bytes beyond the end of `codes` must be writable.
    void next_group(std::size_t group, std::uint8_t* codes);
    // The same of up to rans::max_together streams of one size and the same tables: faster than one by one.
    static void next_group(std::size_t group, std::span<Decoder* const> streams, std::uint8_t* const* codes);
    // The reverse of Encoder::add_values, in parts from the first to the last.
    static void next_values(std::size_t count, std::span<Decoder* const> streams,
                            const std::uint8_t* const* others, std::byte* const* values);
    // Every byte was used and every state is back where the encoder began.
    void finish() const;

  private:
    static std::array<rans::Decoder*, rans::max_together> decoders_of(std::span<Decoder* const> streams);

    const Tables* tables_;
    std::size_t rows_;
    std::size_t channels_;
    std::vector<std::byte> copy_;
    rans::Decoder decoder_;
};

}  // namespace orbitsplit::stream
