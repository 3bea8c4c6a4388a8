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
    __attribute__((always_inline)) __m512i step(const DecodeTable& table, __mmask64 active) {
        const __m512i slot = states.low;
        const __m512i frequency = table.frequency(slot);
        const __m512i rank = table.rank(slot);
        const __m512i x_even =
            _mm512_add_epi16(_mm512_mullo_epi16(even(frequency), even(states.high)), even(rank));
        const __m512i x_odd =
            _mm512_add_epi16(_mm512_mullo_epi16(odd(frequency), odd(states.high)), odd(rank));
        const __m512i low = low_bytes(x_even, x_odd);
        const __m512i high = high_bytes(x_even, x_odd);
        const __mmask64 is_low = _mm512_mask_testn_epi8_mask(active, high, high);
        const __m512i refilled = _mm512_mask_expand_epi8(low, is_low, _mm512_loadu_si512(next));
        states.low = _mm512_mask_mov_epi8(slot, active, refilled);
        states.high = _mm512_mask_mov_epi8(states.high, active, _mm512_mask_mov_epi8(high, is_low, low));
        next += count_lanes(is_low);
        const __mmask64 is_escape = _mm512_mask_cmplt_epu8_mask(active, slot, table.escape_slots);
        const __m512i symbol =
            _mm512_mask_expand_epi8(table.symbol(slot), is_escape, _mm512_loadu_si512(escape));
        escape += count_lanes(is_escape);
        return symbol;
    }
};

// Whether every step has one table: other steps are left to the scalar kernels.
bool has_one_table_a_step(const Steps& steps) {
    return steps.lanes > 0 && (steps.table_of_channel == nullptr || steps.lanes == steps.rows);
}

// Streams that are decoded side by side.
template <std::size_t streams>
struct Batch {
    rans::Decoder* decoders[streams];
    std::uint8_t* codes[streams];
    Decoding decoding[streams];

    // One step of each; false where bytes ran out.
    __attribute__((always_inline)) bool step(const DecodeTable& table, std::size_t first, __mmask64 active) {
        for (std::size_t k = 0; k < streams; ++k)
            if (!decoding[k].is_within(*decoders[k])) return false;
        for (std::size_t k = 0; k < streams; ++k)
            _mm512_storeu_si512(codes[k] + first, decoding[k].step(table, active));
        return true;
    }

    __attribute__((always_inline)) bool run(const Steps& steps) {
        const std::size_t count = steps.channels * steps.rows;
        const __mmask64 active = first_lanes(steps.lanes);
        std::size_t first = 0;
        if (steps.table_of_channel != nullptr) {
            for (std::size_t channel = 0; channel < steps.channels; ++channel, first += steps.lanes)
                if (!step(DecodeTable(steps.tables[steps.table_of_channel[channel]]), first, active))
                    return false;
            return true;
        }
        const DecodeTable table(steps.tables[0]);
        for (; first + steps.lanes <= count; first += steps.lanes)
            if (!step(table, first, active)) return false;
        return first == count || step(table, first, first_lanes(count - first));
    }

    bool decode(const Steps& steps) {
        bool is_whole = run(steps);
        for (std::size_t k = 0; k < streams; ++k) {
            decoding[k].put_back(*decoders[k]);
            is_whole = is_whole && decoding[k].is_within(*decoders[k]);
        }
        return is_whole;
    }
};

bool decode(const Steps& steps, rans::Decoder& decoder, std::uint8_t* codes) {
    if (!has_one_table_a_step(steps)) return scalar::rans.decode(steps, decoder, codes);
    return Batch<1>{{&decoder}, {codes}, {Decoding(decoder)}}.decode(steps);
}

bool decode_two(const Steps& steps, rans::Decoder& first, std::uint8_t* first_codes, rans::Decoder& second,
                std::uint8_t* second_codes) {
    if (!has_one_table_a_step(steps))
        return scalar::rans.decode_two(steps, first, first_codes, second, second_codes);
    return Batch<2>{{&first, &second}, {first_codes, second_codes}, {Decoding(first), Decoding(second)}}
        .decode(steps);
}

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

    __attribute__((always_inline)) void step(const EncodeTable& table, __m512i symbol, __mmask64 active) {
        const __m512i frequency = table.frequency(symbol);
        const __m512i start = table.start(symbol);
        const __m512i inverse_low = table.inverse_low(symbol);
        const __m512i inverse_high = table.inverse_high(symbol);
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
    if (!has_one_table_a_step(steps)) return scalar::rans.encode(steps, codes, encoder);
    Encoding encoding{load_states(encoder.state), encoder.next, encoder.escape};
    const __mmask64 active = first_lanes(steps.lanes);
    std::size_t left = steps.channels * steps.rows;
    const auto step_at = [&](const EncodeTable& table, std::size_t first, __mmask64 lanes) {
        encoding.step(table, _mm512_loadu_si512(codes + first), lanes);
    };
    if (steps.table_of_channel != nullptr) {
        for (std::size_t channel = steps.channels; channel-- > 0;)
            step_at(EncodeTable(steps.tables[steps.table_of_channel[channel]]), channel * steps.lanes,
                    active);
    } else {
        const EncodeTable table(steps.tables[0]);
        if (const std::size_t rest = left % steps.lanes; rest != 0)
            step_at(table, left -= rest, first_lanes(rest));
        while (left > 0) step_at(table, left -= steps.lanes, active);
    }
    store_states(encoding.states, encoder.state);
    encoder.next = encoding.next;
    encoder.escape = encoding.escape;
}

}  // namespace

constinit const Rans avx512::rans = {encode, decode, decode_two};

}  // namespace orbitsplit::kernels
