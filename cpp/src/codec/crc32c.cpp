#include <array>
#include <cstring>

#include "codec/kernels.hpp"
#include "orbitsplit/frame.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <nmmintrin.h>
#define ORBITSPLIT_CRC32C_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define ORBITSPLIT_CRC32C_TARGET
#endif

namespace orbitsplit {

namespace {

template <std::size_t count>
using Tables = std::array<std::array<std::uint32_t, 256>, count>;

// byte_tables[k][b]: the checksum of byte b followed by k zero bytes ("slicing by 8").
constexpr Tables<8> make_byte_tables() {
    Tables<8> tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78 : 0);
        tables[0][byte] = crc;
    }
    for (std::size_t k = 1; k < 8; ++k)
        for (std::size_t byte = 0; byte < 256; ++byte)
            tables[k][byte] = (tables[k - 1][byte] >> 8) ^ tables[0][tables[k - 1][byte] & 0xFF];
    return tables;
}

constexpr Tables<8> byte_tables = make_byte_tables();

std::uint64_t load_word(const std::byte* bytes) {
    std::uint64_t word;
    std::memcpy(&word, bytes, sizeof word);
    return word;
}

#if defined(ORBITSPLIT_CRC32C_TARGET)

// The instruction takes three cycles but can start every cycle: three streams of so many bytes side by side.
constexpr std::size_t stream_bytes = 512;

// The checksum after that many zero bytes, from the tables of its four bytes (the operation is linear).
constexpr std::uint32_t skip(const Tables<4>& tables, std::uint32_t crc) {
    return tables[0][crc & 0xFF] ^ tables[1][(crc >> 8) & 0xFF] ^ tables[2][(crc >> 16) & 0xFF] ^
           tables[3][crc >> 24];
}

constexpr Tables<4> make_stream_tables() {
    Tables<4> tables{};
    for (std::uint32_t k = 0; k < 4; ++k)
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t crc = byte << (8 * k);
            tables[k][byte] = (crc >> 8) ^ byte_tables[0][crc & 0xFF];
        }
    for (std::size_t bytes = 1; bytes < stream_bytes; bytes *= 2) {
        const Tables<4> half = tables;
        for (auto& table : tables)
            for (std::uint32_t& crc : table) crc = skip(half, crc);
    }
    return tables;
}

constexpr Tables<4> stream_tables = make_stream_tables();

#if defined(__x86_64__)

ORBITSPLIT_CRC32C_TARGET inline std::uint64_t step(std::uint64_t crc, const std::byte* bytes) {
    return _mm_crc32_u64(crc, load_word(bytes));
}

bool has_instruction() {
    static const bool supported = __builtin_cpu_supports("sse4.2") != 0;
    return supported;
}

#else

inline std::uint64_t step(std::uint64_t crc, const std::byte* bytes) {
    return __crc32cd(static_cast<std::uint32_t>(crc), load_word(bytes));
}

bool has_instruction() { return true; }

#endif

ORBITSPLIT_CRC32C_TARGET std::uint32_t update_by_instruction(std::uint32_t before,
                                                             std::span<const std::byte> bytes) {
    std::uint64_t crc = before;
    std::size_t at = 0;
    for (; at + 3 * stream_bytes <= bytes.size(); at += 3 * stream_bytes) {
        const std::byte* first = bytes.data() + at;
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
    for (; at + 8 <= bytes.size(); at += 8) crc = step(crc, bytes.data() + at);
    return kernels::update_crc32c_portable(static_cast<std::uint32_t>(crc), bytes.subspan(at));
}

#endif

}  // namespace

std::uint32_t kernels::update_crc32c_portable(std::uint32_t crc, std::span<const std::byte> bytes) {
    std::size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
        const std::uint64_t word = load_word(bytes.data() + i) ^ crc;
        crc = 0;
        for (std::size_t k = 0; k < 8; ++k) crc ^= byte_tables[7 - k][(word >> (8 * k)) & 0xFF];
    }
    for (; i < bytes.size(); ++i)
        crc = (crc >> 8) ^ byte_tables[0][(crc ^ std::to_integer<std::uint32_t>(bytes[i])) & 0xFF];
    return crc;
}

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) {
#if defined(ORBITSPLIT_CRC32C_TARGET)
    if (has_instruction()) return ~update_by_instruction(~before, bytes);
#endif
    return ~kernels::update_crc32c_portable(~before, bytes);
}

}  // namespace orbitsplit
