// 64 states as two vectors of their low and high bytes: a slot then is a byte and every table a permutation.
#include <immintrin.h>

#include "codec/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

using rans::max_lanes;
using rans::Steps;
using rans::Table;

__mmask64 first_lanes(std::size_t count) { return _bzhi_u64(~0ULL, static_cast<unsigned>(count)); }

std::size_t count_lanes(__mmask64 mask) { return static_cast<std::size_t>(_mm_popcnt_u64(mask)); }

// Bytes at even positions as words, those at odd ones as words, and both put together again.
__m512i even(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi16(0x00FF)); }
__m512i odd(__m512i bytes) { return _mm512_srli_epi16(bytes, 8); }

// The low (high) bytes of words: a & 0x00FF | b << 8; a >> 8 | b & 0xFF00.
__m512i low_bytes(__m512i a, __m512i b) {
    return _mm512_mask_mov_epi8(a, 0xAAAAAAAAAAAAAAAA, _mm512_slli_epi16(b, 8));
}
__m512i high_bytes(__m512i a, __m512i b) {
    return _mm512_mask_mov_epi8(_mm512_srli_epi16(a, 8), 0xAAAAAAAAAAAAAAAA, b);
}

struct States {
    __m512i low;
    __m512i high;
};

States load_states(const std::uint16_t* state) {
    const __m512i first = _mm512_load_si512(state);
    const __m512i second = _mm512_load_si512(state + 32);
    const auto join = [](__m512i a, __m512i b) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b),
                                  1);
    };
    return {join(first, second), join(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8))};
}

void store_states(States states, std::uint16_t* state) {
    const auto widen = [&](__m256i low, __m256i high) {
        return _mm512_or_si512(_mm512_cvtepu8_epi16(low), _mm512_slli_epi16(_mm512_cvtepu8_epi16(high), 8));
    };
    _mm512_store_si512(state, widen(_mm512_castsi512_si256(states.low), _mm512_castsi512_si256(states.high)));
    _mm512_store_si512(state + 32, widen(_mm512_extracti64x4_epi64(states.low, 1),
                                         _mm512_extracti64x4_epi64(states.high, 1)));
}

// A table of 256 bytes in registers.
struct Lookup {
    __m512i quarter[4];

    explicit Lookup(const std::uint8_t* table) {
        for (int i = 0; i < 4; ++i) quarter[i] = _mm512_load_si512(table + 64 * i);
    }

    __m512i operator()(__m512i index) const {
        const __m512i below = _mm512_permutex2var_epi8(quarter[0], index, quarter[1]);
        const __m512i above = _mm512_permutex2var_epi8(quarter[2], index, quarter[3]);
        return _mm512_mask_mov_epi8(below, _mm512_movepi8_mask(index), above);
    }
};

// Entries of 32 bits, one a lane, looked up in memory.
struct Entries {
    __m512i quarter[4];

    // The byte of each entry that lies `shift` bits above its lowest.
    template <unsigned shift>
    __m512i bytes() const {
        __m512i joined = _mm512_castsi128_si512(_mm512_cvtepi32_epi8(_mm512_srli_epi32(quarter[0], shift)));
        joined = _mm512_inserti32x4(joined, _mm512_cvtepi32_epi8(_mm512_srli_epi32(quarter[1], shift)), 1);
        joined = _mm512_inserti32x4(joined, _mm512_cvtepi32_epi8(_mm512_srli_epi32(quarter[2], shift)), 2);
        return _mm512_inserti32x4(joined, _mm512_cvtepi32_epi8(_mm512_srli_epi32(quarter[3], shift)), 3);
    }
};

// A table for each lane: those of the channels of one row.
struct LaneTables {
    const Table* tables;
    __m512i offset[4];  // of each lane's table, in entries

    LaneTables(const Steps& steps, std::size_t channel, __mmask64 active) : tables(steps.tables) {
        const __m512i index = _mm512_maskz_loadu_epi8(active, steps.table_of_channel + channel);
        const __m512i stride = _mm512_set1_epi32(sizeof(Table) / sizeof(std::uint32_t));
        const Entries wide = widen(index);
        for (int i = 0; i < 4; ++i) offset[i] = _mm512_mullo_epi32(wide.quarter[i], stride);
    }

    Entries at(__m512i index, std::size_t entry_offset) const {
        const auto* entries = reinterpret_cast<const std::byte*>(tables) + entry_offset;
        Entries found = widen(index);
        for (int i = 0; i < 4; ++i)
            found.quarter[i] =
                _mm512_i32gather_epi32(_mm512_add_epi32(found.quarter[i], offset[i]), entries, 4);
        return found;
    }

  private:
    static Entries widen(__m512i bytes) {
        return {_mm512_cvtepu8_epi32(_mm512_castsi512_si128(bytes)),
                _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 1)),
                _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 2)),
                _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 3))};
    }
};

// What a table has for the slots of all lanes.
struct Slots {
    __m512i symbol;
    __m512i frequency;
    __m512i rank;
    __mmask64 is_escape;
};

struct DecodeTable {
    Lookup symbol;
    Lookup frequency;
    Lookup rank;
    __m512i escape_slots;

    explicit DecodeTable(const Table& table)
        : symbol(table.symbol_of),
          frequency(table.frequency_of),
          rank(table.rank_of),
          escape_slots(_mm512_set1_epi8(static_cast<char>(table.escape_slots))) {}

    Slots operator()(__m512i slot) const {
        return {symbol(slot), frequency(slot), rank(slot), _mm512_cmplt_epu8_mask(slot, escape_slots)};
    }
};

struct DecodeLaneTables {
    LaneTables tables;

    Slots operator()(__m512i slot) const {
        const Entries entries = tables.at(slot, offsetof(Table, slot_entry));
        const __m512i escapes = entries.bytes<16>();
        return {entries.bytes<24>(), entries.bytes<0>(), entries.bytes<8>(),
                _mm512_test_epi8_mask(escapes, escapes)};
    }
};

// A decoder in registers for the length of a loop.
struct Decoding {
    States states;
    const std::uint8_t* next;
    const std::uint8_t* escape;

    explicit Decoding(const rans::Decoder& decoder)
        : states(load_states(decoder.state)), next(decoder.next), escape(decoder.escape) {}

    void put_back(rans::Decoder& decoder) const {
        store_states(states, decoder.state);
        decoder.next = next;
        decoder.escape = escape;
    }

    bool is_within(const rans::Decoder& decoder) const {
        return next <= decoder.next_end && escape <= decoder.escape_end;
    }

    // One step of the lanes in `active`, whose symbols it returns.
    template <class Tables>
    __attribute__((always_inline)) __m512i step(const Tables& tables, __mmask64 active) {
        const Slots slots = tables(states.low);
        const __m512i x_even =
            _mm512_add_epi16(_mm512_mullo_epi16(even(slots.frequency), even(states.high)), even(slots.rank));
        const __m512i x_odd =
            _mm512_add_epi16(_mm512_mullo_epi16(odd(slots.frequency), odd(states.high)), odd(slots.rank));
        const __m512i low = low_bytes(x_even, x_odd);
        const __m512i high = high_bytes(x_even, x_odd);
        const __mmask64 is_low = _mm512_mask_testn_epi8_mask(active, high, high);
        const __m512i refilled = _mm512_mask_expand_epi8(low, is_low, _mm512_loadu_si512(next));
        states.low = _mm512_mask_mov_epi8(states.low, active, refilled);
        states.high = _mm512_mask_mov_epi8(states.high, active, _mm512_mask_mov_epi8(high, is_low, low));
        next += count_lanes(is_low);
        const __mmask64 is_escape = slots.is_escape & active;
        const __m512i symbol = _mm512_mask_expand_epi8(slots.symbol, is_escape, _mm512_loadu_si512(escape));
        escape += count_lanes(is_escape);
        return symbol;
    }
};

// How the tables lie in steps. Tables of a few lanes are left to the scalar kernels: a look-up in memory takes
// as long for one lane as for all.
enum class Layout { one, one_a_step, one_a_lane, scattered };

// The lanes of the step that begins with symbol `first`: the last one may have fewer.
__mmask64 lanes_at(const Steps& steps, std::size_t first) {
    const std::size_t left = steps.channels * steps.rows - first;
    return first_lanes(left < steps.lanes ? left : steps.lanes);
}

Layout layout_of(const Steps& steps) {
    if (steps.lanes == 0) return Layout::scattered;
    if (steps.table_of_channel == nullptr) return Layout::one;
    if (steps.lanes == steps.rows) return Layout::one_a_step;
    return steps.rows == 1 && steps.lanes >= max_lanes / 2 ? Layout::one_a_lane : Layout::scattered;
}

// Streams that are decoded side by side.
template <std::size_t streams>
struct Batch {
    rans::Decoder* decoders[streams];
    std::uint8_t* codes[streams];
    Decoding decoding[streams];

    // One step of each; false where bytes ran out.
    template <class Tables>
    __attribute__((always_inline)) bool step(const Tables& tables, std::size_t first, __mmask64 active) {
        for (std::size_t k = 0; k < streams; ++k)
            if (!decoding[k].is_within(*decoders[k])) return false;
        for (std::size_t k = 0; k < streams; ++k)
            _mm512_storeu_si512(codes[k] + first, decoding[k].step(tables, active));
        return true;
    }

    __attribute__((always_inline)) bool run(const Steps& steps, Layout layout) {
        const std::size_t count = steps.channels * steps.rows;
        if (layout == Layout::one) {
            const DecodeTable table(steps.tables[0]);
            for (std::size_t first = 0; first < count; first += steps.lanes)
                if (!step(table, first, lanes_at(steps, first))) return false;
        } else if (layout == Layout::one_a_step) {
            const __mmask64 active = first_lanes(steps.lanes);
            for (std::size_t channel = 0; channel < steps.channels; ++channel)
                if (!step(DecodeTable(steps.tables[steps.table_of_channel[channel]]), channel * steps.lanes,
                          active))
                    return false;
        } else {
            for (std::size_t first = 0; first < count; first += steps.lanes) {
                const __mmask64 active = lanes_at(steps, first);
                if (!step(DecodeLaneTables{LaneTables(steps, first, active)}, first, active)) return false;
            }
        }
        return true;
    }

    bool decode(const Steps& steps, Layout layout) {
        bool is_whole = run(steps, layout);
        for (std::size_t k = 0; k < streams; ++k) {
            decoding[k].put_back(*decoders[k]);
            is_whole = is_whole && decoding[k].is_within(*decoders[k]);
        }
        return is_whole;
    }
};

bool decode(const Steps& steps, rans::Decoder& decoder, std::uint8_t* codes) {
    const Layout layout = layout_of(steps);
    if (layout == Layout::scattered) return scalar::rans.decode(steps, decoder, codes);
    return Batch<1>{{&decoder}, {codes}, {Decoding(decoder)}}.decode(steps, layout);
}

bool decode_two(const Steps& steps, rans::Decoder& first, std::uint8_t* first_codes, rans::Decoder& second,
                std::uint8_t* second_codes) {
    const Layout layout = layout_of(steps);
    if (layout == Layout::scattered)
        return scalar::rans.decode_two(steps, first, first_codes, second, second_codes);
    return Batch<2>{{&first, &second}, {first_codes, second_codes}, {Decoding(first), Decoding(second)}}
        .decode(steps, layout);
}

// What a table has for the symbols of all lanes.
struct Symbols {
    __m512i frequency;
    __m512i start;
    __m512i inverse_low;
    __m512i inverse_high;
};

struct EncodeTable {
    Lookup frequency;
    Lookup start;
    Lookup inverse_low;
    Lookup inverse_high;

    explicit EncodeTable(const Table& table)
        : frequency(table.frequency),
          start(table.start),
          inverse_low(table.inverse_low),
          inverse_high(table.inverse_high) {}

    Symbols operator()(__m512i symbol) const {
        return {frequency(symbol), start(symbol), inverse_low(symbol), inverse_high(symbol)};
    }
};

struct EncodeLaneTables {
    LaneTables tables;

    Symbols operator()(__m512i symbol) const {
        const Entries entries = tables.at(symbol, offsetof(Table, symbol_entry));
        return {entries.bytes<0>(), entries.bytes<8>(), entries.bytes<16>(), entries.bytes<24>()};
    }
};

constexpr struct Sequence {
    std::uint8_t value[2 * max_lanes] = {};
    constexpr Sequence() {
        for (std::size_t i = 0; i < 2 * max_lanes; ++i) value[i] = static_cast<std::uint8_t>(i);
    }
} sequence;

// The chosen bytes in front of `out`: a whole store that ends there, what lies below is written later.
std::uint8_t* put_in_front(std::uint8_t* out, __mmask64 chosen, __m512i bytes) {
    const std::size_t count = count_lanes(chosen);
    const __m512i turned = _mm512_permutexvar_epi8(_mm512_loadu_si512(sequence.value + count),
                                                   _mm512_maskz_compress_epi8(chosen, bytes));
    _mm512_storeu_si512(out - max_lanes, turned);
    return out - count;
}

// Quotient and rest of words by a frequency: the inverse is rounded down, the quotient right or one too small.
struct Division {
    __m512i quotient;
    __m512i rest;

    Division(__m512i x, __m512i frequency, __m512i inverse) {
        const __m512i guess = _mm512_mulhi_epu16(x, inverse);
        const __m512i left = _mm512_sub_epi16(x, _mm512_mullo_epi16(guess, frequency));
        const __mmask32 is_small = _mm512_cmpge_epu16_mask(left, frequency);
        quotient = _mm512_mask_sub_epi16(guess, is_small, guess, _mm512_set1_epi16(-1));
        rest = _mm512_min_epu16(left, _mm512_sub_epi16(left, frequency));
    }
};

struct Encoding {
    States states;
    std::uint8_t* next;
    std::uint8_t* escape;

    template <class Tables>
    __attribute__((always_inline)) void step(const Tables& tables, __m512i symbol, __mmask64 active) {
        const auto [frequency, start, inverse_low, inverse_high] = tables(symbol);
        escape = put_in_front(escape, _mm512_mask_testn_epi8_mask(active, start, start), symbol);
        const __mmask64 is_high = _mm512_mask_cmpge_epu8_mask(active, states.high, frequency);
        next = put_in_front(next, is_high, states.low);
        const __m512i low = _mm512_mask_mov_epi8(states.low, is_high, states.high);
        const __m512i high = _mm512_maskz_mov_epi8(~is_high, states.high);
        const __m512i zero = _mm512_setzero_si512();
        const Division first(_mm512_unpacklo_epi8(low, high), _mm512_unpacklo_epi8(frequency, zero),
                             _mm512_unpacklo_epi8(inverse_low, inverse_high));
        const Division second(_mm512_unpackhi_epi8(low, high), _mm512_unpackhi_epi8(frequency, zero),
                              _mm512_unpackhi_epi8(inverse_low, inverse_high));
        const __m512i rest = _mm512_packus_epi16(first.rest, second.rest);
        states.low = _mm512_mask_add_epi8(states.low, active, rest, start);
        states.high =
            _mm512_mask_mov_epi8(states.high, active, _mm512_packus_epi16(first.quotient, second.quotient));
    }
};

void encode(const Steps& steps, const std::uint8_t* codes, rans::Encoder& encoder) {
    const Layout layout = layout_of(steps);
    if (layout == Layout::scattered) return scalar::rans.encode(steps, codes, encoder);
    Encoding encoding{load_states(encoder.state), encoder.next, encoder.escape};
    const std::size_t count = steps.channels * steps.rows;
    const EncodeTable first_table(steps.tables[0]);
    for (std::size_t left = (count + steps.lanes - 1) / steps.lanes; left-- > 0;) {
        const std::size_t first = left * steps.lanes;
        const __mmask64 active = lanes_at(steps, first);
        const __m512i symbol = _mm512_loadu_si512(codes + first);
        if (layout == Layout::one)
            encoding.step(first_table, symbol, active);
        else if (layout == Layout::one_a_step)
            encoding.step(EncodeTable(steps.tables[steps.table_of_channel[left]]), symbol, active);
        else
            encoding.step(EncodeLaneTables{LaneTables(steps, first, active)}, symbol, active);
    }
    store_states(encoding.states, encoder.state);
    encoder.next = encoding.next;
    encoder.escape = encoding.escape;
}

}  // namespace

constinit const Rans avx512::rans = {encode, decode, decode_two};

}  // namespace orbitsplit::kernels
