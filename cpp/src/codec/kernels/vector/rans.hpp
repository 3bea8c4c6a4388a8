// The steps of the stream coder on octets of lanes. States stay in memory: the table entry of each lane is a load of its
// own, and only the arithmetic and the bytes that go in and out are vectors. A step of 64 lanes has enough octets that
// are independent of each other to hide the latency of one, so streams are coded one after another.
//
// All in an anonymous namespace, so that each file has its own copy.
#pragma once

#include "codec/kernels/kernels.hpp"
#include "codec/kernels/scalar/symbols.hpp"
#include "codec/kernels/vector/octets.hpp"

namespace orbitsplit::kernels {

namespace {

using rans::max_lanes;
using rans::Steps;
using rans::Table;

// With fewer lanes the latency of a step counts, which is that of a few scalar symbols.
constexpr std::size_t least_lanes = 16;

// The tables of the lanes of a step: one for all.
class TableOfStep {
  public:
    explicit TableOfStep(const Steps& steps) : steps_(steps), table_(steps.tables) {}

    void move_to(std::size_t first, std::size_t) {
        if (steps_.table_of_channel != nullptr)
            table_ = steps_.tables + steps_.table_of_channel[first / steps_.rows];
    }
    const Table& operator()(std::size_t) const { return *table_; }

  private:
    const Steps& steps_;
    const Table* table_;
};

// A table of its own for each lane.
class TablesOfLanes {
  public:
    explicit TablesOfLanes(const Steps& steps) : steps_(steps) {}

    void move_to(std::size_t first, std::size_t count) {
        std::size_t channel = first / steps_.rows;
        for (std::size_t lane = 0; lane < count; ++channel) {
            const Table* table = steps_.tables + steps_.table_of_channel[channel];
            for (const std::size_t end = lane + steps_.rows; lane < end && lane < count; ++lane)
                tables_[lane] = table;
        }
    }
    const Table& operator()(std::size_t lane) const { return *tables_[lane]; }

  private:
    const Steps& steps_;
    const Table* tables_[max_lanes];
};

std::size_t lanes_at(const Steps& steps, std::size_t first) {
    const std::size_t left = steps.channels * steps.rows - first;
    return left < steps.lanes ? left : steps.lanes;
}

// A bit for each lane of octet `k` that is all ones, among those of a step.
template <class Set>
inline std::uint64_t mask_at(std::size_t k, Words words) {
    return std::uint64_t{Set::mask_of(words)} << (octet * k);
}

template <class Set, class Tables>
__attribute__((always_inline)) inline void decode_octets(const Tables& tables, std::size_t octets,
                                                         std::uint16_t* states, Begins& begins,
                                                         std::uint8_t* codes) {
    Words upper[max_lanes / octet];
    Words flags{};
    const std::uint8_t* next = begins.next;
    for (std::size_t k = 0; k < octets; ++k) {
        std::uint16_t* state = states + octet * k;
        Words lower;
        Set::lookup(
            [&](std::size_t lane) { return &tables(octet * k + lane).slot_entry[state[lane] & 0xFFU]; },
            lower, upper[k]);
        Words x;
        load(state, x);
        x = (lower & 0xFF) * (x >> 8) + (lower >> 8);
        const SignedWords is_low = (x >> 8) == 0;
        const unsigned mask = Set::mask_of(reinterpret_cast<Words>(is_low));
        store(is_low ? (x << 8) | Set::expand(next, mask) : x, state);
        next += Set::count(mask);
        Set::store_high_bytes(upper[k], codes + octet * k);
        flags |= upper[k];
    }
    begins.next = next;
    if (Set::is_zero(flags & 0xFF)) [[likely]]
        return;
    std::uint64_t escaped = 0;
    for (std::size_t k = 0; k < octets; ++k)
        escaped |= mask_at<Set>(k, reinterpret_cast<Words>((upper[k] & 0xFF) != 0));
    for (; escaped != 0; escaped &= escaped - 1) codes[__builtin_ctzll(escaped)] = *begins.escape++;
}

template <class Set, class Tables>
bool decode_steps(const Steps& steps, Tables tables, rans::Decoder& decoder, std::uint8_t* codes) {
    alignas(64) std::uint16_t states[max_lanes];
    __builtin_memcpy(states, decoder.state, sizeof states);
    Begins begins{decoder.next, decoder.escape};
    const std::size_t count = steps.channels * steps.rows;
    for (std::size_t first = 0; first < count; first += steps.lanes) {
        if (!begins.is_within(decoder)) return false;
        const std::size_t lanes = lanes_at(steps, first);
        tables.move_to(first, lanes);
        decode_octets<Set>(tables, lanes / octet, states, begins, codes + first);
        for (std::size_t lane = lanes / octet * octet; lane < lanes; ++lane)
            codes[first + lane] = decode_symbol(tables(lane), states[lane], begins);
    }
    __builtin_memcpy(decoder.state, states, sizeof states);
    decoder.next = begins.next;
    decoder.escape = begins.escape;
    return begins.is_within(decoder);
}

// Numbers below 2^15 are compared as signed ones, for which there is an instruction everywhere.
inline SignedWords is_below(Words a, Words b) {
    return reinterpret_cast<SignedWords>(a) < reinterpret_cast<SignedWords>(b);
}

template <class Set, class Tables>
__attribute__((always_inline)) inline void encode_octets(const Tables& tables, std::size_t octets,
                                                         const std::uint8_t* codes, std::uint16_t* states,
                                                         Ends& ends) {
    Words are_escapes[max_lanes / octet];
    Words any_escape{};
    std::uint8_t* next = ends.next;
    for (std::size_t k = octets; k-- > 0;) {
        const std::uint8_t* code = codes + octet * k;
        Words lower;
        Words inverse;
        Set::lookup([&](std::size_t lane) { return &tables(octet * k + lane).symbol_entry[code[lane]]; },
                    lower, inverse);
        const Words frequency = lower & 0xFF;
        const Words start = lower >> 8;
        are_escapes[k] = reinterpret_cast<Words>(start == 0);
        any_escape |= are_escapes[k];
        Words state;
        load(states + octet * k, state);
        const SignedWords is_low = is_below(state >> 8, frequency);
        const unsigned mask = Set::mask_of(reinterpret_cast<Words>(~is_low));
        Set::compress_before(next, state, mask);
        next -= Set::count(mask);
        const Words x = is_low ? state : state >> 8;
        // The inverse is rounded down: the quotient is exact or one too small.
        const Words guess = Set::multiply_high(x, inverse);
        const Words left = x - guess * frequency;
        const Words more = (256 - frequency) & reinterpret_cast<Words>(~is_below(left, frequency));
        store((guess << 8) + left + start + more, states + octet * k);
    }
    ends.next = next;
    if (Set::is_zero(any_escape)) [[likely]]
        return;
    std::uint64_t escaped = 0;
    for (std::size_t k = 0; k < octets; ++k) escaped |= mask_at<Set>(k, are_escapes[k]);
    while (escaped != 0) {
        const int lane = 63 - __builtin_clzll(escaped);
        *--ends.escape = codes[lane];
        escaped &= ~(std::uint64_t{1} << lane);
    }
}

template <class Set, class Tables>
void encode_steps(const Steps& steps, Tables tables, const std::uint8_t* codes, rans::Encoder& encoder) {
    alignas(64) std::uint16_t states[max_lanes];
    __builtin_memcpy(states, encoder.state, sizeof states);
    Ends ends{encoder.next, encoder.escape};
    const std::size_t count = steps.channels * steps.rows;
    std::size_t first = count == 0 ? 0 : (count - 1) / steps.lanes * steps.lanes + steps.lanes;
    while (first > 0) {
        first -= steps.lanes;
        const std::size_t lanes = lanes_at(steps, first);
        tables.move_to(first, lanes);
        for (std::size_t lane = lanes; lane-- > lanes / octet * octet;)
            states[lane] = static_cast<std::uint16_t>(
                encode_symbol(tables(lane), codes[first + lane], states[lane], ends));
        encode_octets<Set>(tables, lanes / octet, codes + first, states, ends);
    }
    __builtin_memcpy(encoder.state, states, sizeof states);
    encoder.next = ends.next;
    encoder.escape = ends.escape;
}

bool is_one_table(const Steps& steps) {
    return steps.table_of_channel == nullptr || steps.lanes == steps.rows;
}

template <class Set>
void encode(const Steps& steps, std::size_t streams, const std::uint8_t* const* codes,
            rans::Encoder* const* encoders) {
    if (steps.lanes < least_lanes) return scalar::rans.encode(steps, streams, codes, encoders);
    for (std::size_t k = 0; k < streams; ++k)
        if (is_one_table(steps))
            encode_steps<Set>(steps, TableOfStep(steps), codes[k], *encoders[k]);
        else
            encode_steps<Set>(steps, TablesOfLanes(steps), codes[k], *encoders[k]);
}

template <class Set>
bool decode(const Steps& steps, std::size_t streams, rans::Decoder* const* decoders,
            std::uint8_t* const* codes) {
    if (steps.lanes < least_lanes) return scalar::rans.decode(steps, streams, decoders, codes);
    for (std::size_t k = 0; k < streams; ++k) {
        const bool is_whole = is_one_table(steps)
                                  ? decode_steps<Set>(steps, TableOfStep(steps), *decoders[k], codes[k])
                                  : decode_steps<Set>(steps, TablesOfLanes(steps), *decoders[k], codes[k]);
        if (!is_whole) return false;
    }
    return true;
}

// Values pass through a block of exponents that stays in the cache; a multiple of every number of lanes.
constexpr std::size_t block_values = 1024;

template <class Set, class Planes>
void encode_values(const Steps& steps, std::size_t streams, const std::byte* const* values,
                   std::uint8_t* const* others, rans::Encoder* const* encoders) {
    std::uint8_t exponents[block_values];
    const std::uint8_t* const codes = exponents;
    for (std::size_t k = 0; k < streams; ++k) {
        Steps part = steps;
        for (std::size_t end = steps.channels; end > 0; end -= part.channels) {
            part.channels = (end - 1) % block_values + 1;  // only the last part may be shorter
            const std::size_t first = end - part.channels;
            Planes::split(values[k] + 2 * first, part.channels, exponents, others[k] + first);
            encode<Set>(part, 1, &codes, encoders + k);
        }
    }
}

template <class Set, class Planes>
bool decode_values(const Steps& steps, std::size_t streams, rans::Decoder* const* decoders,
                   const std::uint8_t* const* others, std::byte* const* values) {
    std::uint8_t exponents[block_values + rans::slack_bytes];
    std::uint8_t* const codes = exponents;
    for (std::size_t k = 0; k < streams; ++k) {
        Steps part = steps;
        for (std::size_t first = 0; first < steps.channels; first += part.channels) {
            const std::size_t left = steps.channels - first;
            part.channels = left < block_values ? left : block_values;
            if (!decode<Set>(part, 1, decoders + k, &codes)) return false;
            Planes::merge(exponents, others[k] + first, part.channels, values[k] + 2 * first);
        }
    }
    return true;
}

}  // namespace

}  // namespace orbitsplit::kernels
