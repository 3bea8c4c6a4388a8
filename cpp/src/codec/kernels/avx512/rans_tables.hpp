// Lookups of 64 lanes in the tables of the stream coder: by slot in a decoder, by symbol in an encoder. A table is
// held in registers, or gathered from memory if every lane has its own table.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "codec/kernels/rans.hpp"

namespace orbitsplit::kernels {

namespace {

using rans::Steps;
using rans::Table;

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

// Entries of 32 bits, one for each lane, gathered from memory.
struct Entries {
    __m512i quarter[4];

    // The byte of each entry at bit `shift`.
    template <unsigned shift>
    __m512i bytes() const {
        __m512i joined = _mm512_castsi128_si512(_mm512_cvtepi32_epi8(_mm512_srli_epi32(quarter[0], shift)));
        joined = _mm512_inserti32x4(joined, _mm512_cvtepi32_epi8(_mm512_srli_epi32(quarter[1], shift)), 1);
        joined = _mm512_inserti32x4(joined, _mm512_cvtepi32_epi8(_mm512_srli_epi32(quarter[2], shift)), 2);
        return _mm512_inserti32x4(joined, _mm512_cvtepi32_epi8(_mm512_srli_epi32(quarter[3], shift)), 3);
    }
};

// A table for each lane: the tables of the channels of one row.
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

// The values of a table for the slots of all lanes.
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

struct DecodeCompact {
    Lookup entry;
    __m512i symbol;
    __m512i frequency;
    __m512i start;

    explicit DecodeCompact(const Table& table)
        : entry(table.compact.entry_of_slot),
          symbol(_mm512_load_si512(table.compact.symbol)),
          frequency(_mm512_load_si512(table.compact.frequency)),
          start(_mm512_load_si512(table.compact.start)) {}

    Slots operator()(__m512i slot) const {
        const __m512i at = entry(slot);  // a permutation uses the lowest six bits
        return {_mm512_permutexvar_epi8(at, symbol), _mm512_permutexvar_epi8(at, frequency),
                _mm512_sub_epi8(slot, _mm512_permutexvar_epi8(at, start)), _mm512_movepi8_mask(at)};
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

// The values of a table for the symbols of all lanes.
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

struct EncodeCompact {
    Lookup entry;
    __m512i frequency;
    __m512i start;
    __m512i inverse_low;
    __m512i inverse_high;

    explicit EncodeCompact(const Table& table)
        : entry(table.compact.entry_of_symbol),
          frequency(_mm512_load_si512(table.compact.frequency)),
          start(_mm512_load_si512(table.compact.start)),
          inverse_low(_mm512_load_si512(table.compact.inverse_low)),
          inverse_high(_mm512_load_si512(table.compact.inverse_high)) {}

    Symbols operator()(__m512i symbol) const {
        const __m512i at = entry(symbol);
        return {_mm512_permutexvar_epi8(at, frequency), _mm512_permutexvar_epi8(at, start),
                _mm512_permutexvar_epi8(at, inverse_low), _mm512_permutexvar_epi8(at, inverse_high)};
    }
};

struct EncodeLaneTables {
    LaneTables tables;

    Symbols operator()(__m512i symbol) const {
        const Entries entries = tables.at(symbol, offsetof(Table, symbol_entry));
        return {entries.bytes<0>(), entries.bytes<8>(), entries.bytes<16>(), entries.bytes<24>()};
    }
};

}  // namespace

}  // namespace orbitsplit::kernels
