// CRC-32C by the processor's instruction, three interleaved streams. All in an anonymous namespace, so that each file
// has its own copy.
#pragma once

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

// Bytes of each of three streams: the instruction has a latency of three cycles but can start every cycle.
constexpr std::size_t stream_bytes = 512;

struct StreamTables {
    std::uint32_t of_byte[4][256];
};

// The checksum after `stream_bytes` zero bytes, from the tables of its four bytes (the operation is linear).
constexpr std::uint32_t skip_stream(const StreamTables& tables, std::uint32_t crc) {
    return tables.of_byte[0][crc & 0xFF] ^ tables.of_byte[1][(crc >> 8) & 0xFF] ^
           tables.of_byte[2][(crc >> 16) & 0xFF] ^ tables.of_byte[3][crc >> 24];
}

constexpr StreamTables make_stream_tables() {
    StreamTables tables{};
    for (std::uint32_t k = 0; k < 4; ++k)
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            std::uint32_t crc = byte << (8 * k);
            for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78 : 0);
            tables.of_byte[k][byte] = crc;
        }
    for (std::size_t bytes = 1; bytes < stream_bytes; bytes *= 2) {
        const StreamTables half = tables;
        for (auto& table : tables.of_byte)
            for (std::uint32_t& crc : table) crc = skip_stream(half, crc);
    }
    return tables;
}

constexpr StreamTables stream_tables = make_stream_tables();

// `Instruction` provides of_word(crc, eight bytes) and of_byte(crc, byte).
template <class Instruction>
std::uint32_t update_by_instruction(std::uint32_t crc, const std::byte* bytes, std::size_t count) {
    const auto step = [](std::uint32_t before, const std::byte* here) {
        std::uint64_t word;
        __builtin_memcpy(&word, here, sizeof word);
        return Instruction::of_word(before, word);
    };
    for (; count >= 3 * stream_bytes; count -= 3 * stream_bytes, bytes += 3 * stream_bytes) {
        std::uint32_t second = 0;
        std::uint32_t third = 0;
        for (std::size_t i = 0; i < stream_bytes; i += 8) {
            crc = step(crc, bytes + i);
            second = step(second, bytes + stream_bytes + i);
            third = step(third, bytes + 2 * stream_bytes + i);
        }
        crc = skip_stream(stream_tables, crc) ^ second;
        crc = skip_stream(stream_tables, crc) ^ third;
    }
    for (; count >= 8; count -= 8, bytes += 8) crc = step(crc, bytes);
    for (; count > 0; --count, ++bytes) crc = Instruction::of_byte(crc, static_cast<unsigned char>(*bytes));
    return crc;
}

}  // namespace

}  // namespace orbitsplit::kernels
