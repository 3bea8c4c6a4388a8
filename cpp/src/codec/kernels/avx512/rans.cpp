// 64 states as two vectors of their low and high bytes, so that a slot is a byte and a table lookup a permutation.
#include <immintrin.h>

#include "codec/kernels/avx512/masks.hpp"
#include "codec/kernels/avx512/rans_tables.hpp"
#include "codec/kernels/avx512/values.hpp"
#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

using rans::max_lanes;

// The even bytes as words, the odd bytes as words, and both joined again.
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

// A decoder whose states are in registers.
struct Decoding {
    States states;
    const std::uint8_t* next;
    const std::uint8_t* escape;

    void take(const rans::Decoder& decoder) {
        states = load_states(decoder.state);
        next = decoder.next;
        escape = decoder.escape;
    }

    void put_back(rans::Decoder& decoder) const {
        store_states(states, decoder.state);
        decoder.next = next;
        decoder.escape = escape;
    }

    bool is_within(const rans::Decoder& decoder) const {
        return next <= decoder.next_end && escape <= decoder.escape_end;
    }

    // One step of the lanes in `active`, or of all lanes; returns their symbols.
    template <bool is_full, class Tables>
    __attribute__((always_inline)) __m512i step(const Tables& tables, __mmask64 active) {
        const Slots slots = tables(states.low);
        const __m512i x_even =
            _mm512_add_epi16(_mm512_mullo_epi16(even(slots.frequency), even(states.high)), even(slots.rank));
        const __m512i x_odd =
            _mm512_add_epi16(_mm512_mullo_epi16(odd(slots.frequency), odd(states.high)), odd(slots.rank));
        const __m512i low = low_bytes(x_even, x_odd);
        const __m512i high = high_bytes(x_even, x_odd);
        const __mmask64 is_zero = _mm512_testn_epi8_mask(high, high);
        const __mmask64 is_low = is_full ? is_zero : is_zero & active;
        const __m512i refilled = _mm512_mask_expand_epi8(low, is_low, _mm512_loadu_si512(next));
        const __m512i shifted = _mm512_mask_mov_epi8(high, is_low, low);
        states.low = is_full ? refilled : _mm512_mask_mov_epi8(states.low, active, refilled);
        states.high = is_full ? shifted : _mm512_mask_mov_epi8(states.high, active, shifted);
        next += count_lanes(is_low);
        const __mmask64 is_escape = is_full ? slots.is_escape : slots.is_escape & active;
        const __m512i symbol = _mm512_mask_expand_epi8(slots.symbol, is_escape, _mm512_loadu_si512(escape));
        escape += count_lanes(is_escape);
        return symbol;
    }
};

// How tables are assigned within a step. Steps of few lanes with several tables are left to the scalar kernels: a
// gather takes as long for one lane as for all.
enum class Layout { one, one_per_step, one_per_lane, scattered };

// The lanes of the step that begins with symbol `first`; the last step may have fewer.
__mmask64 lanes_at(const Steps& steps, std::size_t first) {
    const std::size_t left = steps.channels * steps.rows - first;
    return first_lanes(left < steps.lanes ? left : steps.lanes);
}

Layout layout_of(const Steps& steps) {
    if (steps.lanes == 0) return Layout::scattered;
    if (steps.table_of_channel == nullptr) return Layout::one;
    if (steps.lanes == steps.rows) return Layout::one_per_step;
    return steps.rows == 1 && steps.lanes >= max_lanes / 2 ? Layout::one_per_lane : Layout::scattered;
}

// Stores decoded symbols.
struct CodesSink {
    std::uint8_t* const* codes;

    template <bool is_full>
    void put(std::size_t stream, std::size_t first, __mmask64, __m512i symbols) const {
        _mm512_storeu_si512(codes[stream] + first, symbols);
    }
};

// Joins symbols that are exponents with the other bits to bfloat16 values.
struct ValuesSink {
    const std::uint8_t* const* others;
    std::byte* const* values;

    template <bool is_full>
    __attribute__((always_inline)) void put(std::size_t stream, std::size_t first, __mmask64 active,
                                            __m512i exponents) const {
        const std::uint8_t* bytes = others[stream] + first;
        std::byte* out = values[stream] + 2 * first;
        if constexpr (is_full)
            merge(exponents, _mm512_loadu_si512(bytes)).store(out);
        else
            merge(exponents, _mm512_maskz_loadu_epi8(active, bytes)).store(out, active);
    }
};

// Streams that are decoded interleaved.
template <std::size_t streams, class Sink>
struct DecodingBatch {
    rans::Decoder* const* decoders;
    Sink sink;
    Decoding decoding[streams];

    // One step of each; false if the bytes of a stream ran out.
    template <bool is_full, class Tables>
    __attribute__((always_inline)) bool step(const Tables& tables, std::size_t first, __mmask64 active) {
        for (std::size_t k = 0; k < streams; ++k)
            if (!decoding[k].is_within(*decoders[k])) return false;
        for (std::size_t k = 0; k < streams; ++k)
            sink.template put<is_full>(k, first, active, decoding[k].template step<is_full>(tables, active));
        return true;
    }

    // All steps, with the tables that `tables_at` returns for each.
    template <class TablesAt>
    __attribute__((always_inline)) bool run(const Steps& steps, TablesAt tables_at) {
        const std::size_t count = steps.channels * steps.rows;
        std::size_t first = 0;
        if (steps.lanes == max_lanes)
            for (; first + max_lanes <= count; first += max_lanes)
                if (!step<true>(tables_at(first, ~__mmask64{0}), first, ~__mmask64{0})) return false;
        for (; first < count; first += steps.lanes) {
            const __mmask64 active = lanes_at(steps, first);
            if (!step<false>(tables_at(first, active), first, active)) return false;
        }
        return true;
    }

    template <class OneTable>
    bool run_with(const Steps& steps, Layout layout) {
        if (layout == Layout::one) {
            const OneTable table(steps.tables[0]);
            return run(steps, [&](std::size_t, __mmask64) { return table; });
        }
        return run(steps, [&](std::size_t first, __mmask64) {
            return OneTable(steps.tables[steps.table_of_channel[first / steps.lanes]]);
        });
    }

    bool run(const Steps& steps, Layout layout) {
        if (layout == Layout::one_per_lane)
            return run(steps, [&](std::size_t first, __mmask64 active) {
                return DecodeLaneTables{LaneTables(steps, first, active)};
            });
        return steps.are_compact ? run_with<DecodeCompact>(steps, layout)
                                 : run_with<DecodeTable>(steps, layout);
    }

    bool decode(const Steps& steps, Layout layout) {
        for (std::size_t k = 0; k < streams; ++k) decoding[k].take(*decoders[k]);
        bool is_whole = run(steps, layout);
        for (std::size_t k = 0; k < streams; ++k) {
            decoding[k].put_back(*decoders[k]);
            is_whole = is_whole && decoding[k].is_within(*decoders[k]);
        }
        return is_whole;
    }
};

template <class Sink>
bool decode_into(const Steps& steps, Layout layout, std::size_t streams, rans::Decoder* const* decoders,
                 Sink sink) {
    switch (streams) {
        case 1:
            return DecodingBatch<1, Sink>{decoders, sink, {}}.decode(steps, layout);
        case 2:
            return DecodingBatch<2, Sink>{decoders, sink, {}}.decode(steps, layout);
        case 3:
            return DecodingBatch<3, Sink>{decoders, sink, {}}.decode(steps, layout);
        default:
            return DecodingBatch<4, Sink>{decoders, sink, {}}.decode(steps, layout);
    }
}

bool decode(const Steps& steps, std::size_t streams, rans::Decoder* const* decoders,
            std::uint8_t* const* codes) {
    const Layout layout = layout_of(steps);
    if (layout == Layout::scattered) return scalar::rans.decode(steps, streams, decoders, codes);
    return decode_into(steps, layout, streams, decoders, CodesSink{codes});
}

bool decode_values(const Steps& steps, std::size_t streams, rans::Decoder* const* decoders,
                   const std::uint8_t* const* others, std::byte* const* values) {
    return decode_into(steps, layout_of(steps), streams, decoders, ValuesSink{others, values});
}

constexpr struct Sequence {
    std::uint8_t value[2 * max_lanes] = {};
    constexpr Sequence() {
        for (std::size_t i = 0; i < 2 * max_lanes; ++i) value[i] = static_cast<std::uint8_t>(i);
    }
} sequence;

// Writes the chosen bytes in front of `out` by a full store that ends there; the bytes below are written later.
std::uint8_t* put_in_front(std::uint8_t* out, __mmask64 chosen, __m512i bytes) {
    const std::size_t count = count_lanes(chosen);
    const __m512i turned = _mm512_permutexvar_epi8(_mm512_loadu_si512(sequence.value + count),
                                                   _mm512_maskz_compress_epi8(chosen, bytes));
    _mm512_storeu_si512(out - max_lanes, turned);
    return out - count;
}

// Quotient and remainder of words by a frequency. The inverse is rounded down, so the first quotient is exact or one
// too small.
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

    template <bool is_full, class Tables>
    __attribute__((always_inline)) void step(const Tables& tables, __m512i symbol, __mmask64 active) {
        const auto [frequency, start, inverse_low, inverse_high] = tables(symbol);
        const __mmask64 are_escapes = _mm512_testn_epi8_mask(start, start);
        escape = put_in_front(escape, is_full ? are_escapes : are_escapes & active, symbol);
        const __mmask64 are_high = _mm512_cmpge_epu8_mask(states.high, frequency);
        const __mmask64 is_high = is_full ? are_high : are_high & active;
        next = put_in_front(next, is_high, states.low);
        const __m512i low = _mm512_mask_mov_epi8(states.low, is_high, states.high);
        const __m512i high = _mm512_maskz_mov_epi8(~is_high, states.high);
        const __m512i zero = _mm512_setzero_si512();
        const Division first(_mm512_unpacklo_epi8(low, high), _mm512_unpacklo_epi8(frequency, zero),
                             _mm512_unpacklo_epi8(inverse_low, inverse_high));
        const Division second(_mm512_unpackhi_epi8(low, high), _mm512_unpackhi_epi8(frequency, zero),
                              _mm512_unpackhi_epi8(inverse_low, inverse_high));
        const __m512i next_low = _mm512_add_epi8(_mm512_packus_epi16(first.rest, second.rest), start);
        const __m512i next_high = _mm512_packus_epi16(first.quotient, second.quotient);
        states.low = is_full ? next_low : _mm512_mask_mov_epi8(states.low, active, next_low);
        states.high = is_full ? next_high : _mm512_mask_mov_epi8(states.high, active, next_high);
    }
};

// Loads symbols.
struct CodesSource {
    const std::uint8_t* const* codes;

    template <bool is_full>
    __m512i take(std::size_t stream, std::size_t first, __mmask64) const {
        return _mm512_loadu_si512(codes[stream] + first);
    }
};

// Splits bfloat16 values: returns the exponents and stores the other bits.
struct ValuesSource {
    const std::byte* const* values;
    std::uint8_t* const* others;
    Split split{};

    template <bool is_full>
    __attribute__((always_inline)) __m512i take(std::size_t stream, std::size_t first,
                                                __mmask64 active) const {
        const std::byte* in = values[stream] + 2 * first;
        const Values here = is_full ? Values::load(in) : Values::load(in, active);
        std::uint8_t* out = others[stream] + first;
        if constexpr (is_full)
            _mm512_storeu_si512(out, split.others(here));
        else
            _mm512_mask_storeu_epi8(out, active, split.others(here));
        return split.exponents(here);
    }
};

// Streams that are encoded interleaved.
template <std::size_t streams, class Source>
struct EncodingBatch {
    Source source;
    rans::Encoder* const* encoders;
    Encoding encoding[streams];

    template <bool is_full, class Tables>
    __attribute__((always_inline)) void step(const Tables& tables, std::size_t first, __mmask64 active) {
        for (std::size_t k = 0; k < streams; ++k)
            encoding[k].template step<is_full>(tables, source.template take<is_full>(k, first, active),
                                               active);
    }

    // From the last step to the first, with the tables that `tables_at` returns for each.
    template <class TablesAt>
    __attribute__((always_inline)) void run(const Steps& steps, TablesAt tables_at) {
        for (std::size_t k = 0; k < streams; ++k)
            encoding[k] = {load_states(encoders[k]->state), encoders[k]->next, encoders[k]->escape};
        const std::size_t count = steps.channels * steps.rows;
        std::size_t first = count == 0 ? 0 : (count - 1) / steps.lanes * steps.lanes + steps.lanes;
        while (first > 0) {
            first -= steps.lanes;
            if (steps.lanes == max_lanes && first + max_lanes <= count)
                step<true>(tables_at(first, ~__mmask64{0}), first, ~__mmask64{0});
            else
                step<false>(tables_at(first, lanes_at(steps, first)), first, lanes_at(steps, first));
        }
        for (std::size_t k = 0; k < streams; ++k) {
            store_states(encoding[k].states, encoders[k]->state);
            encoders[k]->next = encoding[k].next;
            encoders[k]->escape = encoding[k].escape;
        }
    }

    template <class OneTable>
    void encode_with(const Steps& steps, Layout layout) {
        if (layout == Layout::one) {
            const OneTable table(steps.tables[0]);
            return run(steps, [&](std::size_t, __mmask64) { return table; });
        }
        run(steps, [&](std::size_t first, __mmask64) {
            return OneTable(steps.tables[steps.table_of_channel[first / steps.lanes]]);
        });
    }

    void encode(const Steps& steps, Layout layout) {
        if (layout == Layout::one_per_lane)
            return run(steps, [&](std::size_t first, __mmask64 active) {
                return EncodeLaneTables{LaneTables(steps, first, active)};
            });
        return steps.are_compact ? encode_with<EncodeCompact>(steps, layout)
                                 : encode_with<EncodeTable>(steps, layout);
    }
};

// Two at a time, enough to keep the arithmetic units busy.
void encode(const Steps& steps, std::size_t streams, const std::uint8_t* const* codes,
            rans::Encoder* const* encoders) {
    const Layout layout = layout_of(steps);
    if (layout == Layout::scattered) return scalar::rans.encode(steps, streams, codes, encoders);
    std::size_t k = 0;
    for (; k + 2 <= streams; k += 2)
        EncodingBatch<2, CodesSource>{{codes + k}, encoders + k, {}}.encode(steps, layout);
    if (k < streams) EncodingBatch<1, CodesSource>{{codes + k}, encoders + k, {}}.encode(steps, layout);
}

void encode_values(const Steps& steps, std::size_t streams, const std::byte* const* values,
                   std::uint8_t* const* others, rans::Encoder* const* encoders) {
    const Layout layout = layout_of(steps);
    std::size_t k = 0;
    for (; k + 2 <= streams; k += 2)
        EncodingBatch<2, ValuesSource>{{values + k, others + k}, encoders + k, {}}.encode(steps, layout);
    if (k < streams)
        EncodingBatch<1, ValuesSource>{{values + k, others + k}, encoders + k, {}}.encode(steps, layout);
}

}  // namespace

constinit const Rans avx512::rans = {encode, decode, encode_values, decode_values};

}  // namespace orbitsplit::kernels
