#include <nmmintrin.h>

#include "codec/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

// The instruction takes three cycles but can start every cycle: three streams of so many bytes side by side.
constexpr std::size_t stream_bytes = 512;

struct Tables {
    std::uint32_t of_byte[4][256];
};

// The checksum after `stream_bytes` zero bytes, from the tables of its four bytes (the operation is linear).
constexpr std::uint32_t skip(const Tables& tables, std::uint32_t crc) {
    return tables.of_byte[0][crc & 0xFF] ^ tables.of_byte[1][(crc >> 8) & 0xFF] ^
           tables.of_byte[2][(crc >> 16) & 0xFF] ^ tables.of_byte[3][crc >> 24];
}

constexpr Tables make_stream_tables() {
    Tables tables{};
    for (std::uint32_t k = 0; k < 4; ++k)
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            std::uint32_t crc = byte << (8 * k);
            for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78 : 0);
            tables.of_byte[k][byte] = crc;
        }
    for (std::size_t bytes = 1; bytes < stream_bytes; bytes *= 2) {
        const Tables half = tables;
        for (auto& table : tables.of_byte)
            for (std::uint32_t& crc : table) crc = skip(half, crc);
    }
    return tables;
}

constexpr Tables stream_tables = make_stream_tables();

std::uint64_t step(std::uint64_t crc, const std::byte* bytes) {
    std::uint64_t word;
    __builtin_memcpy(&word, bytes, sizeof word);
    return _mm_crc32_u64(crc, word);
}

std::uint32_t update(std::uint32_t before, const std::byte* bytes, std::size_t count) {
    std::uint64_t crc = before;
    std::size_t at = 0;
    for (; at + 3 * stream_bytes <= count; at += 3 * stream_bytes) {
        const std::byte* first = bytes + at;
        std::uint64_t second = 0;
        std::uint64_t third = 0;
        for (std::size_t i = 0; i < stream_bytes; i += 8) {
            crc = step(crc, first + i);
            second = step(second, first + stream_bytes + i);
            third = step(third, first + 2 * stream_bytes + i);
        }
        crc = skip(stream_tables, static_cast<std::uint32_t>(crc)) ^ second;
        crc = skip(stream_tables, static_cast<std::uint32_t>(crc)) ^ third;
    }
    for (; at + 8 <= count; at += 8) crc = step(crc, bytes + at);
    auto last = static_cast<std::uint32_t>(crc);
    for (; at < count; ++at) last = _mm_crc32_u8(last, static_cast<unsigned char>(bytes[at]));
    return last;
}

}  // namespace

constinit const Checksum avx2::checksum = {update};

}  // namespace orbitsplit::kernels
