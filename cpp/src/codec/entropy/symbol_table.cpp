// Frequency tables: built from counts, serialised, parsed and prepared for the kernels.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "codec/entropy/stream.hpp"
#include "orbitsplit/error.hpp"

namespace orbitsplit::stream {

namespace {

constexpr unsigned slots = 256;
constexpr unsigned escaped = 256;  // the escape as an entry of a table

// Bits of a symbol of the given frequency, times 65536, rounded up: log2(256 / f) by repeated squaring, which gives the
// same integer on every machine.
constexpr std::uint64_t cost_of(unsigned frequency) {
    std::uint64_t mantissa = std::uint64_t{frequency} << 31;
    std::uint64_t logarithm = 0;
    for (; mantissa >= std::uint64_t{2} << 31; mantissa >>= 1) logarithm += 65536;
    for (std::uint64_t bit = 32768; bit > 0; bit >>= 1) {
        mantissa = (mantissa * mantissa) >> 31;
        if (mantissa >= std::uint64_t{2} << 31) {
            mantissa >>= 1;
            logarithm += bit;
        }
    }
    return 8 * 65536 - logarithm;
}

constexpr std::array<std::uint64_t, slots + 1> costs = [] {
    std::array<std::uint64_t, slots + 1> values{};
    for (unsigned frequency = 1; frequency <= slots; ++frequency) values[frequency] = cost_of(frequency);
    return values;
}();

struct Entry {
    unsigned symbol;  // or escaped
    std::uint64_t count;
    unsigned frequency;
};

// The entries of a table, the escape last: not a vector, because an encoder builds a table for each frame.
class Entries {
  public:
    void add(Entry entry) { entries_[size_++] = entry; }
    void remove(Entry* entry) {
        std::copy(entry + 1, end(), entry);
        --size_;
    }

    std::size_t size() const { return size_; }
    Entry* begin() { return entries_.data(); }
    Entry* end() { return entries_.data() + size_; }
    const Entry* begin() const { return entries_.data(); }
    const Entry* end() const { return entries_.data() + size_; }

  private:
    std::array<Entry, slots + 1> entries_;
    std::size_t size_ = 0;
};

// Distributes 256 slots: each entry gets its share rounded down, at least one; then slots are added to the entry that
// gains most, or taken from the one that loses least, one at a time. The derivative of count * log2(f) approximates the
// difference. Ties: the first.
void share_slots(Entries& entries, std::uint64_t total) {
    unsigned sum = 0;
    for (Entry& entry : entries) {
        entry.frequency = static_cast<unsigned>(std::max<std::uint64_t>(1, entry.count * slots / total));
        sum += entry.frequency;
    }
    for (; sum < slots; ++sum)
        ++std::ranges::max_element(entries, [](const Entry& a, const Entry& b) {
              return a.count * (2 * b.frequency + 1) < b.count * (2 * a.frequency + 1);
          })->frequency;
    for (; sum > slots; --sum) {
        Entry* cheapest = nullptr;
        for (Entry& entry : entries)
            if (entry.frequency > 1 &&
                (cheapest == nullptr ||
                 entry.count * (2 * cheapest->frequency - 1) < cheapest->count * (2 * entry.frequency - 1)))
                cheapest = &entry;
        --cheapest->frequency;
    }
}

// The entries of a table that escapes symbols with less than 1 / 2^shift of the counts.
Entries entries_above(std::span<const std::uint64_t, 256> counts, std::uint64_t total, int shift) {
    Entries entries;
    for (unsigned symbol = 0; symbol < 256; ++symbol)
        if (counts[symbol] << shift >= total) entries.add({symbol, counts[symbol], 0});
    if (entries.size() == slots)  // the escape needs a slot
        entries.remove(std::ranges::min_element(entries, {}, &Entry::count));
    std::uint64_t coded = 0;
    for (const Entry& entry : entries) coded += entry.count;
    entries.add({escaped, total - coded, 0});
    share_slots(entries, total);
    return entries;
}

std::uint64_t bits_of(const Entries& entries) {
    std::uint64_t bits = 0;
    for (const Entry& entry : entries)
        bits += entry.count * (costs[entry.frequency] + (entry.symbol == escaped ? 8 * 65536 : 0));
    return bits;
}

unsigned inverse_of(unsigned frequency) { return std::min(65535U, 65536U / frequency); }

void enter(rans::Table& table, unsigned symbol, unsigned start, unsigned frequency) {
    const unsigned inverse = inverse_of(frequency);
    table.frequency[symbol] = static_cast<std::uint8_t>(frequency);
    table.start[symbol] = static_cast<std::uint8_t>(start);
    table.inverse_low[symbol] = static_cast<std::uint8_t>(inverse);
    table.inverse_high[symbol] = static_cast<std::uint8_t>(inverse >> 8);
    table.symbol_entry[symbol] = frequency | start << 8 | inverse << 16;
}

void fill_slots(rans::Table& table, unsigned symbol, unsigned start, unsigned frequency) {
    for (unsigned rank = 0; rank < frequency; ++rank) {
        table.symbol_of[start + rank] = static_cast<std::uint8_t>(symbol);
        table.frequency_of[start + rank] = static_cast<std::uint8_t>(frequency);
        table.rank_of[start + rank] = static_cast<std::uint8_t>(rank);
        table.slot_entry[start + rank] = frequency | rank << 8 | (start == 0 ? 1U : 0U) << 16 | symbol << 24;
    }
}

bool is_compact(const SymbolTable& symbols) {
    const auto uncoded = std::ranges::count(symbols.frequency, std::uint8_t{0});
    return static_cast<std::size_t>(uncoded) + rans::compact_entries > slots;
}

void fill_compact(rans::Table& table, const SymbolTable& symbols) {
    rans::CompactTable& compact = table.compact;
    constexpr std::uint8_t last = rans::compact_entries - 1;
    std::ranges::fill(compact.entry_of_symbol, last);
    std::ranges::fill(compact.entry_of_slot, std::uint8_t{0x80 | last});
    const unsigned inverse = inverse_of(table.escape_slots);
    compact.frequency[last] = table.escape_slots;
    compact.inverse_low[last] = static_cast<std::uint8_t>(inverse);
    compact.inverse_high[last] = static_cast<std::uint8_t>(inverse >> 8);
    std::uint8_t entry = 0;
    for (unsigned symbol = 0; symbol < 256; ++symbol) {
        if (symbols.frequency[symbol] == 0) continue;
        compact.entry_of_symbol[symbol] = entry;
        std::fill_n(compact.entry_of_slot + table.start[symbol], table.frequency[symbol], entry);
        compact.symbol[entry] = static_cast<std::uint8_t>(symbol);
        compact.frequency[entry] = table.frequency[symbol];
        compact.start[entry] = table.start[symbol];
        compact.inverse_low[entry] = table.inverse_low[symbol];
        compact.inverse_high[entry] = table.inverse_high[symbol];
        ++entry;
    }
}

void prepare(const SymbolTable& symbols, rans::Table& table) {
    if (!is_valid(symbols))
        throw std::invalid_argument("frequencies of a table must add up to 256 with an escape of at least 1");
    table = {};
    table.escape_slots = symbols.escape;
    fill_slots(table, 0, 0, symbols.escape);
    unsigned start = symbols.escape;
    for (unsigned symbol = 0; symbol < 256; ++symbol) {
        const unsigned frequency = symbols.frequency[symbol];
        if (frequency == 0) {
            enter(table, symbol, 0, symbols.escape);
            continue;
        }
        enter(table, symbol, start, frequency);
        fill_slots(table, symbol, start, frequency);
        start += frequency;
    }
    if (is_compact(symbols)) fill_compact(table, symbols);
}

}  // namespace

bool is_valid(const SymbolTable& table) {
    unsigned sum = table.escape;
    for (const std::uint8_t frequency : table.frequency) sum += frequency;
    return table.escape > 0 && sum == slots;
}

SymbolTable build_table(std::span<const std::uint64_t, 256> counts) {
    std::uint64_t total = 0;
    for (const std::uint64_t count : counts) total += count;
    if (total == 0) {
        SymbolTable zeros{.escape = 1};
        zeros.frequency[0] = 255;
        return zeros;
    }
    Entries best;
    std::uint64_t fewest = std::numeric_limits<std::uint64_t>::max();
    for (int shift = 8; shift <= 12; ++shift) {
        const Entries entries = entries_above(counts, total, shift);
        const std::uint64_t bits = bits_of(entries);
        if (bits >= fewest) continue;
        fewest = bits;
        best = entries;
    }
    SymbolTable table;
    for (const Entry& entry : best)
        (entry.symbol == escaped ? table.escape : table.frequency[entry.symbol]) =
            static_cast<std::uint8_t>(entry.frequency);
    return table;
}

std::size_t write_table(const SymbolTable& table, std::byte* out) {
    const auto is_coded = [](std::uint8_t frequency) { return frequency != 0; };
    const auto first = std::ranges::find_if(table.frequency, is_coded);
    const auto last = std::find_if(table.frequency.rbegin(), table.frequency.rend(), is_coded).base() - 1;
    std::byte* end = out;
    *end++ = static_cast<std::byte>(first - table.frequency.begin());
    *end++ = static_cast<std::byte>(last - table.frequency.begin());
    *end++ = static_cast<std::byte>(table.escape);
    for (auto at = first; at <= last; ++at) *end++ = static_cast<std::byte>(*at);
    return static_cast<std::size_t>(end - out);
}

SymbolTable take_table(std::span<const std::byte>& bytes) {
    SymbolTable table;
    const auto byte_at = [&](std::size_t i) { return std::to_integer<std::uint8_t>(bytes[i]); };
    const bool has_range = bytes.size() >= 3 && byte_at(0) <= byte_at(1);
    const std::size_t count = has_range ? byte_at(1) - byte_at(0) + std::size_t{1} : 0;
    if (!has_range || bytes.size() < 3 + count)
        throw CorruptFrameError("frame has a table of symbols that is cut off or has no symbol");
    table.escape = byte_at(2);
    for (std::size_t i = 0; i < count; ++i) table.frequency[byte_at(0) + i] = byte_at(3 + i);
    if (!is_valid(table) || byte_at(3) == 0 || byte_at(2 + count) == 0)
        throw CorruptFrameError("frame has a table of symbols whose frequencies do not add up to 256");
    bytes = bytes.subspan(3 + count);
    return table;
}

Tables::Tables(const SymbolTable& table, rans::Table* memory)
    : borrowed_(memory), are_compact_(is_compact(table)) {
    prepare(table, *memory);
}

Tables::Tables(std::span<const SymbolTable> tables, std::span<const std::uint8_t> table_of_channel)
    : table_of_channel_(table_of_channel.begin(), table_of_channel.end()), are_compact_(true) {
    if (tables.empty() || tables.size() > max_tables)
        throw std::invalid_argument("there are " + std::to_string(tables.size()) +
                                    " tables, there must be 1 to " + std::to_string(max_tables));
    for (const std::uint8_t index : table_of_channel)
        if (index >= tables.size())
            throw std::invalid_argument("a channel has table " + std::to_string(index) + ", there are " +
                                        std::to_string(tables.size()));
    owned_.resize(tables.size());
    for (std::size_t t = 0; t < tables.size(); ++t) {
        prepare(tables[t], owned_[t]);
        are_compact_ = are_compact_ && is_compact(tables[t]);
    }
    // Kernels are faster if they know that all channels have the same table.
    if (tables.size() == 1) table_of_channel_.clear();
}

rans::Steps Tables::steps(std::size_t first, std::size_t channels, std::size_t rows,
                          std::size_t lanes) const {
    return {.tables = borrowed_ != nullptr ? borrowed_ : owned_.data(),
            .table_of_channel = table_of_channel_.empty() ? nullptr : table_of_channel_.data() + first,
            .channels = channels,
            .rows = rows,
            .lanes = lanes,
            .are_compact = are_compact_};
}

}  // namespace orbitsplit::stream
