#include <array>
#include <cstring>

#include "orbitsplit/frame.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define ORBITSPLIT_CRC32C_SSE42
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#define ORBITSPLIT_CRC32C_ARM
#include <arm_acle.h>
#endif

namespace orbitsplit {

namespace {

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

// tables[k][b]: the checksum of byte b followed by k zero bytes ("slicing by 8").
constexpr Tables make_tables() {
    Tables tables{};
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

constexpr Tables tables = make_tables();

std::uint64_t load_word(const std::byte* bytes) {
    std::uint64_t word;
    std::memcpy(&word, bytes, sizeof word);
    return word;
}

std::uint32_t update_portable(std::uint32_t crc, std::span<const std::byte> bytes) {
    std::size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
        const std::uint64_t word = load_word(bytes.data() + i) ^ crc;
        crc = 0;
        for (std::size_t k = 0; k < 8; ++k) crc ^= tables[7 - k][(word >> (8 * k)) & 0xFF];
    }
    for (; i < bytes.size(); ++i)
        crc = (crc >> 8) ^ tables[0][(crc ^ std::to_integer<std::uint32_t>(bytes[i])) & 0xFF];
    return crc;
}

#if defined(ORBITSPLIT_CRC32C_SSE42)

__attribute__((target("sse4.2"))) std::uint32_t update_sse42(std::uint32_t crc,
                                                             std::span<const std::byte> bytes) {
    std::uint64_t wide = crc;
    std::size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) wide = _mm_crc32_u64(wide, load_word(bytes.data() + i));
    crc = static_cast<std::uint32_t>(wide);
    for (; i < bytes.size(); ++i) crc = _mm_crc32_u8(crc, std::to_integer<std::uint8_t>(bytes[i]));
    return crc;
}

std::uint32_t update(std::uint32_t crc, std::span<const std::byte> bytes) {
    static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
    return has_instruction ? update_sse42(crc, bytes) : update_portable(crc, bytes);
}

#elif defined(ORBITSPLIT_CRC32C_ARM)

std::uint32_t update(std::uint32_t crc, std::span<const std::byte> bytes) {
    std::size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) crc = __crc32cd(crc, load_word(bytes.data() + i));
    return update_portable(crc, bytes.subspan(i));
}

#else

std::uint32_t update(std::uint32_t crc, std::span<const std::byte> bytes) {
    return update_portable(crc, bytes);
}

#endif

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) {
    return ~update(~before, bytes);
}

}  // namespace orbitsplit
